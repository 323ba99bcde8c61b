"""What a service that is released by takeover keeps in its runtime directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import Any, Final

from sockway.errors import BusyError
from sockway.serve.runtime import RuntimeDirectory, namespace_directory, write_whole
from sockway.wire.host_id import KEY_LENGTH

_FILE: Final = "takeover.json"


class TakeoverState:
    """The files of a service that is released by takeover, beside those of any service."""

    def __init__(self, name: str) -> None:
        """Refer to them; nothing is made."""
        self.runtime = RuntimeDirectory(name)
        self.directory = self.runtime.path / "takeover"
        self._path = self.runtime.path / _FILE

    @staticmethod
    def names() -> list[str]:
        """Services of this network namespace that are released by takeover, sorted."""
        return sorted(path.parent.name for path in namespace_directory().glob(f"*/{_FILE}"))

    @property
    def is_there(self) -> bool:
        """Whether there is such a service, or was."""
        return self._path.exists()

    def create(self) -> None:
        """Make what is not there.

        Raises:
            PermissionDenied: this process may not.

        """
        self.runtime.create()
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def read(self) -> dict[str, Any]:
        """The last generation's number and its workers, and the key of connection IDs."""
        try:
            state: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"generation": 0, "workers": 0, "key": secrets.token_hex(KEY_LENGTH)}
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Keep it, for this user's eyes alone."""
        before = os.umask(0o077)
        try:
            write_whole(self._path, json.dumps(state))
        finally:
            os.umask(before)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Be the one that releases while the block lasts.

        Raises:
            BusyError: another process is.

        """
        path = self.runtime.path / "releasing"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"service {self.runtime.name} is being released by another process",
                hint="wait for it to end",
            ) from None
        else:
            yield
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove all."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.runtime.remove()


__all__ = ["TakeoverState"]
