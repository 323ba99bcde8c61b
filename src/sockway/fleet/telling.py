"""A host's stamps with the server ID of the registry: only when all balancers know it.

What tells an ID is noted in the registry before it begins, and until it has ended. A note on the
host says which registry is to be told when stamps end.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from sockway.balancer.host import runtime_directory
from sockway.balancer.stamping import Stamping, StampingSpec
from sockway.errors import NotFoundError, SockwayError, StateError
from sockway.fleet.registry import Registry, default_path
from sockway.kernel.pins import permitted


@dataclass(frozen=True)
class Note:
    """Which ID the stamps of a name tell."""

    registry: str
    backend: str
    teller: str

    @classmethod
    def read(cls, name: str) -> Self | None:
        """That of the stamps `name`, if their ID is of a registry."""
        try:
            return cls(**json.loads(_path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, name: str) -> None:
        """Keep it for `name`."""
        path = _path(name)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(asdict(self)), encoding="utf-8")
        fresh.replace(path)


def teller(kind: str, name: str) -> str:
    """What tells an ID, as the registry notes it."""
    return f"{kind} {name} on {socket.gethostname()}"


def stamp_up(spec: StampingSpec, *, wait: float = 0.0) -> int:
    """Stamp, with the ID of the registry if `spec` names a backend; the ID.

    Args:
        spec: what is stamped.
        wait: seconds to wait for balancers that lack the ID.

    Raises:
        NotFoundError: the backend has no ID, or there is no registry.
        StateError: a balancer does not know the ID yet; nothing has changed.
        KernelError: the kernel refused the program; nothing has changed.
        PermissionDenied: this process may not.

    """
    with permitted(_path(spec.name)):
        return _stamp_up(spec, wait)


def _stamp_up(spec: StampingSpec, wait: float) -> int:
    before = Note.read(spec.name)
    note = None
    if spec.backend is not None:
        path = Path(spec.registry or default_path()).absolute()
        note = Note(str(path), spec.backend, teller("tcp", spec.name))
        with Registry.open(path) as registry:
            entry = registry.tell(note.backend, note.teller, wait)
        spec = spec.model_copy(update={"server_id": entry.server_id})
        if before is None or before == note:
            note.write(spec.name)
    try:
        Stamping.up(spec)
    except BaseException:
        if note is not None and note != before:
            with contextlib.suppress(SockwayError):
                _silence(note)
            if before is None:
                _path(spec.name).unlink(missing_ok=True)
        raise
    if before is not None and before != note:
        _silence(before)
        _path(spec.name).unlink(missing_ok=True)
        if note is not None:
            note.write(spec.name)
    return spec.server_id


def stamp_down(name: str) -> None:
    """Stop stamping, and tell the registry.

    Raises:
        NotFoundError: nothing is stamped by this name.
        StateError: stamps have ended, but the registry can't be told.
        PermissionDenied: this process may not.

    """
    with permitted(_path(name)):
        note = Note.read(name)
        try:
            Stamping.existing(name).down()
        except NotFoundError:
            if note is None:
                raise
            # They ended before, and the registry could not be told then.
        if note is not None:
            _silence(note)
            _path(name).unlink(missing_ok=True)


def _silence(note: Note) -> None:
    """Tell the registry; one that is gone needs no word."""
    try:
        with Registry.open(note.registry) as registry:
            registry.fall_silent(note.backend, note.teller)
    except NotFoundError:
        return
    except SockwayError as error:
        raise StateError(
            f"{note.backend}'s server ID is told no more, but the registry does not know that: "
            f"{error.message}",
            hint=f"{error.hint or 'see to the registry'}; then do it again",
        ) from error


def _path(name: str) -> Path:
    return runtime_directory() / f"stamp-{name}.json"


__all__ = ["Note", "stamp_down", "stamp_up", "teller"]
