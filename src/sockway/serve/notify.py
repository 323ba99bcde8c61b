"""The protocol of sd_notify(3), both sides: workers tell us, we tell systemd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

VARIABLE: Final = "NOTIFY_SOCKET"
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid
_LONGEST: Final = 4096


class Notifier:
    """Tells systemd, or whoever set NOTIFY_SOCKET, how the supervisor is. Else does nothing."""

    def __init__(self, address: str | None) -> None:
        """Send to the socket at `address`: a path, or `@` and an abstract name."""
        self._address = "\0" + address[1:] if address and address[0] == "@" else address

    @classmethod
    def take_from_environment(cls) -> Notifier:
        """The one that the environment names; the variable is removed, it is not for workers."""
        return cls(os.environ.pop(VARIABLE, None))

    def send(self, **fields: str | int) -> None:
        """Send fields, as `send(READY=1, STATUS="...")`. Nobody there is no error."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in fields.items())
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.connect(self._address)
            sock.send(message.encode())

    def reloading(self) -> None:
        """RELOADING=1 with the time that Type=notify-reload wants."""
        self.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)


class NotifyListener:
    """Takes notifications of workers, each with the process that the kernel says sent it."""

    def __init__(self, path: Path, on_message: Callable[[int, dict[str, str]], None]) -> None:
        """Listen at `path`; call `on_message` with sender's process id and fields."""
        self.path = path
        self._on_message = on_message
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            # Workers may be another user; who they are is known by their credentials.
            path.chmod(0o666)
            asyncio.get_running_loop().add_reader(self._socket, self._read)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    _LONGEST, socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(64)
                )
            except BlockingIOError:
                return
            sender = 0
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    sender = _CREDENTIALS.unpack(payload[: _CREDENTIALS.size])[0]
                elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    _close_all(payload)  # FDSTORE=1 is not offered
            self._on_message(sender, parse(data))


def parse(data: bytes) -> dict[str, str]:
    """The fields of a message."""
    lines = data.decode(errors="replace").split("\n")
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {name: value for name, _, value in pairs}


def session_of(pid: int) -> int | None:
    """The session that a process is in: the process id of the worker it belongs to."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _close_all(payload: bytes) -> None:
    count = len(payload) // 4
    for descriptor in struct.unpack(f"{count}i", payload[: count * 4]):
        os.close(descriptor)
