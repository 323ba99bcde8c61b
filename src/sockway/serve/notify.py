"""sd_notify(3), both ends of it: telling systemd, and hearing from workers.

Each message is a datagram of `KEY=VALUE` lines. A worker is known by the credentials that the
kernel puts beside its message, so that nobody else can call it ready.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sockway.errors import ConfigError

VARIABLE: Final = "NOTIFY_SOCKET"
_SIZE: Final = 4096
_CREDENTIALS: Final = struct.Struct("iII")
_LONGEST_PATH: Final = 107


class ServiceManager:
    """The service manager that started this process, if one did."""

    def __init__(self) -> None:
        """Take the socket's address out of the environment: it is not the workers'."""
        self._address = os.environ.pop(VARIABLE, "")

    def ready(self, status: str) -> None:
        """Started, or done with a reload."""
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def reloading(self, status: str) -> None:
        """A release begins (Type=notify-reload wants the clock with it)."""
        clock = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={clock}\nSTATUS={status}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1\nSTATUS=draining")

    def status(self, status: str) -> None:
        """What `systemctl status` shows."""
        self._send(f"STATUS={status}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.connect(address)
                sock.send(message.encode())
            except OSError:
                # A manager that does not listen must not end the service.
                return


class NotifySocket:
    """Hears what the workers of one generation tell."""

    def __init__(self, path: Path, on_ready: Callable[[int], None]) -> None:
        """Listen at `path`; `on_ready` is called with the pid of who says READY=1.

        Raises:
            ConfigError: the path is longer than a socket's address can be.

        """
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise ConfigError(
                f"{path} is too long for a socket", hint="set SOCKWAY_RUNTIME to a shorter path"
            )
        path.unlink(missing_ok=True)
        self._on_ready = on_ready
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(path))
        path.chmod(0o777)  # workers of another user write here; credentials tell who it was
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        """Stop listening."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        try:
            data, ancillary, _flags, _address = self._socket.recvmsg(
                _SIZE, socket.CMSG_SPACE(_CREDENTIALS.size)
            )
        except BlockingIOError:
            return
        if b"READY=1" not in data.split(b"\n"):
            return
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                self._on_ready(_CREDENTIALS.unpack(value[: _CREDENTIALS.size])[0])
