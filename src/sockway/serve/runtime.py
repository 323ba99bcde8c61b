"""The runtime directory of a service: what one supervisor leaves for the next, and for `status`.

    <root>/<network namespace>/<service>/
        lock                    held by the supervisor, has its process id
        control, notify         sockets
        generation-3.json       how generation 3 was started, and how it is
        generation-3.drain      its drain flag, one byte
        generation-3.0.pid      who its worker 0 is: process id and start time
        generation-3.0.log      what worker 0 printed and nobody has read yet

It holds no state that routing depends on: without it a service can't be released or drained by
name, and goes on all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sockway.drain.flag import CALM, DRAINING
from sockway.errors import BusyError, PermissionDenied
from sockway.kernel import current_netns_cookie

ROOT_VARIABLE: Final = "SOCKWAY_RUNTIME"
DEFAULT_ROOT: Final = Path("/run/sockway")
_RECORD: Final = re.compile(r"generation-([0-9]+)\.json")


def namespace_directory(root: Path | str | None = None) -> Path:
    """Where the directories of all services of the current network namespace are."""
    chosen = root if root is not None else os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT
    return Path(chosen) / str(current_netns_cookie())


class RuntimeDirectory:
    """Paths and files of one service's runtime directory."""

    def __init__(self, name: str, root: Path | str | None = None) -> None:
        """Refer to the directory of the service `name`; nothing is made yet."""
        self.name = name
        self.path = namespace_directory(root) / name

    def create(self) -> None:
        """Make the directory.

        Raises:
            PermissionDenied: this process may not.

        """
        try:
            # Workers of other users reach the notify socket and the drain flag in here.
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        except PermissionError as error:
            raise PermissionDenied(
                f"can't make {self.path}: {error.strerror}",
                hint=f"run as root, or set {ROOT_VARIABLE} to a directory of your own",
            ) from error

    @property
    def control(self) -> Path:
        """The control socket."""
        return self.path / "control"

    @property
    def notify(self) -> Path:
        """The socket for READY=1."""
        return self.path / "notify"

    def record(self, generation: int) -> Path:
        """What is written of a generation."""
        return self.path / f"generation-{generation}.json"

    def flag(self, generation: int) -> Path:
        """Its drain flag."""
        return self.path / f"generation-{generation}.drain"

    def pid_file(self, generation: int, worker: int) -> Path:
        """Who its worker is."""
        return self.path / f"generation-{generation}.{worker}.pid"

    def log(self, generation: int, worker: int) -> Path:
        """What its worker printed."""
        return self.path / f"generation-{generation}.{worker}.log"

    @contextlib.contextmanager
    def supervised(self) -> Iterator[None]:
        """Be the supervisor of the service while the block lasts.

        Raises:
            BusyError: another process is.

        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(
                    f"service {self.name} is run by process {self._lock_holder()} already",
                    hint=f"release it with `sockway release {self.name}`, or choose another --name",
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def supervisor(self) -> int | None:
        """Process id of the supervisor, or None if none runs."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._lock_holder()
        finally:
            os.close(descriptor)
        return None

    def _lock_holder(self) -> int | None:
        try:
            return int((self.path / "lock").read_text())
        except (OSError, ValueError):
            return None

    def generations(self) -> list[int]:
        """Numbers of the generations with a record, ascending."""
        try:
            names = [entry.name for entry in self.path.iterdir()]
        except OSError:
            return []
        return sorted(int(match[1]) for name in names if (match := _RECORD.fullmatch(name)))

    def write_record(self, generation: int, record: dict[str, Any]) -> None:
        """Write what there is to know of a generation, whole or not at all."""
        write_whole(self.record(generation), json.dumps(record, indent=1) + "\n")

    def read_record(self, generation: int) -> dict[str, Any]:
        """What was written of a generation; empty if nothing (readable) was."""
        try:
            record = json.loads(self.record(generation).read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def set_flag(self, generation: int, *, draining: bool) -> None:
        """Tell a generation's workers that it drains, or that it does not."""
        path = self.flag(generation)
        # Workers have the file mapped, so its byte changes in place.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, DRAINING if draining else CALM, 0)
        finally:
            os.close(descriptor)

    def forget(self, generation: int) -> None:
        """Remove all files of a generation."""
        for path in self.path.glob(f"generation-{generation}.*"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the directory and what is in it."""
        for path in self.path.iterdir():
            with contextlib.suppress(OSError):
                path.unlink()
        for directory in (self.path, self.path.parent):
            with contextlib.suppress(OSError):
                directory.rmdir()


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.rename(path)
