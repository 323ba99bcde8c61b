"""The BPF file system: that it is there, and the lock of a directory in it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sockway.errors import BusyError, ConfigError, NotFoundError
from sockway.kernel.ffi import error_of

_MAGIC: Final = 0xCAFE4A11  # BPF_FS_MAGIC in <linux/magic.h>
DEFAULT_MOUNT: Final = Path("/sys/fs/bpf")
_libc = ctypes.CDLL(None, use_errno=True)


def is_bpffs(path: Path) -> bool:
    """Whether a path, or the nearest directory above it that exists, is on bpffs."""
    while not path.exists():
        path = path.parent
    return magic(path) == _MAGIC


def magic(path: Path) -> int | None:
    """The number that <linux/magic.h> has for a path's file system; None: it can't be told."""
    # struct statfs begins with f_type, a long, on every 64-bit Linux.
    buffer = ctypes.create_string_buffer(512)
    if _libc.statfs(str(path).encode(), buffer):
        return None
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFFFFFF


def mount(path: Path) -> None:
    """Mount a bpffs at `path`, which must be a directory.

    Raises:
        PermissionDenied: it takes CAP_SYS_ADMIN.
        KernelError: the kernel has no bpffs, or the path can't be mounted on.

    """
    if _libc.mount(b"bpf", str(path).encode(), b"bpf", 0, b"mode=0700"):
        raise error_of(ctypes.get_errno(), f"mount bpffs at {path}")


def unmount(path: Path) -> None:
    """Unmount what is mounted at `path`; what it pinned goes when nobody uses it.

    Raises:
        KernelError: nothing is mounted there, or it is in use.

    """
    if _libc.umount2(str(path).encode(), 0):
        raise error_of(ctypes.get_errno(), f"unmount {path}")


def ensure_mounted(path: Path) -> Path:
    """See to it that `path` can hold pins, and return it.

    The kernel's own place, /sys/fs/bpf, is mounted where nobody has done so yet.

    Raises:
        ConfigError: the path is elsewhere, on no bpffs.
        PermissionDenied: mounting takes CAP_SYS_ADMIN.

    """
    if is_bpffs(path):
        return path
    if not path.is_relative_to(DEFAULT_MOUNT):
        raise ConfigError(
            f"{path} is not on a BPF file system",
            hint=f"use a directory below {DEFAULT_MOUNT}, or mount one: mount -t bpf bpf DIR",
        )
    mount(DEFAULT_MOUNT)
    return path


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory; the kernel gives it back when the process ends.

    Raises:
        BusyError: another process holds it.
        NotFoundError: the directory is not there (any more).

    """
    fd = _open(directory)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise BusyError(f"{directory} is locked by another process") from error
            raise
        # It may have been removed, and made anew, between opening and locking.
        if not _is_same(fd, directory):
            raise NotFoundError(f"{directory} was removed meanwhile")
        yield
    finally:
        os.close(fd)


def _open(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"{directory} is not there") from error


def _is_same(fd: int, directory: Path) -> bool:
    try:
        now = directory.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino)
