"""Pins: names in bpffs for maps, programs and links, which keep them when no process does."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from sockway.errors import NotFoundError, PermissionDenied
from sockway.kernel.ffi import check, lib


def pin(fd: int, path: Path | str) -> None:
    """Pin a descriptor's object at a path in bpffs."""
    check(lib.bpf_obj_pin(fd, str(path).encode()), f"pin {path}", "the path must be on bpffs")


def open_pin(path: Path | str) -> int:
    """A descriptor for what is pinned at `path`.

    Raises:
        NotFoundError: nothing is.

    """
    fd = lib.bpf_obj_get(str(path).encode())
    if fd == -errno.ENOENT:
        raise NotFoundError(f"nothing is pinned at {path}")
    return check(fd, f"open {path}")


@contextlib.contextmanager
def permitted(place: Path) -> Iterator[None]:
    """Have what may not be done in the block, at this place or near it, be one clear error.

    Raises:
        PermissionDenied: it may not.

    """
    try:
        yield
    except PermissionError as error:
        raise PermissionDenied(
            f"{error.filename or place}: permission denied", hint="run it as root"
        ) from None
