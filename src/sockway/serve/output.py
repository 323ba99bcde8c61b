"""What workers print: into a file each, read from there.

Why not a pipe: a worker has to outlive its supervisor, and a pipe without a reader kills or blocks
it. A file keeps what is printed meanwhile. What has been read is punched out of the file, so that
it takes no more room than is unread; a later supervisor goes on at the first data that is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

KEPT_LINES: Final = 20
_CHUNK: Final = 1 << 18
_LONGEST_LINE: Final = 1 << 14
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # <linux/falloc.h>
_libc = ctypes.CDLL(None, use_errno=True)


def open_for_writing(path: Path, uid: int | None = None) -> int:
    """A descriptor for a worker's standard output and error.

    Args:
        path: of the file, made if it is not there.
        uid: whose it is, so that a worker can open /dev/stderr by name; ours if None.

    """
    # Appending: each write goes to the end, whoever else writes and whatever is punched out.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    if uid is not None:
        with contextlib.suppress(PermissionError):
            os.fchown(descriptor, uid, -1)
    return descriptor


class Output:
    """Reads the lines of one worker's file as they come."""

    def __init__(self, path: Path, on_line: Callable[[str], None]) -> None:
        """Read from `path`, which may not be there yet, and call `on_line` for each line."""
        self.path = path
        self.last: deque[str] = deque(maxlen=KEPT_LINES)
        """The last lines."""
        self._on_line = on_line
        self._descriptor = -1
        self._offset = 0
        self._rest = b""

    def read(self) -> None:
        """Take what has been written since the last call."""
        if self._descriptor < 0 and not self._open():
            return
        while chunk := os.pread(self._descriptor, _CHUNK, self._offset):
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._take(line)
            if len(self._rest) > _LONGEST_LINE:
                self._take(self._rest)
                self._rest = b""
            _punch(self._descriptor, self._offset, len(chunk))
            self._offset += len(chunk)

    def close(self) -> None:
        """Read what is left, a last line without its end included, and close the file."""
        self.read()
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip("\r")
        self.last.append(line)
        self._on_line(line)

    def _open(self) -> bool:
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            self._offset = os.lseek(self._descriptor, 0, os.SEEK_DATA)
        except OSError:
            self._offset = os.fstat(self._descriptor).st_size
        return True


def _punch(descriptor: int, offset: int, length: int) -> None:
    """Give back the room of a part that was read; where a file system can't, the file grows."""
    _libc.fallocate(
        descriptor,
        _KEEP_SIZE | _PUNCH_HOLE,
        ctypes.c_int64(offset),
        ctypes.c_int64(length),
    )
