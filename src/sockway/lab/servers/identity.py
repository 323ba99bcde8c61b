"""Who a worker is, as it tells its clients."""

from __future__ import annotations

import os
import socket

FIRST_FD = 3


def identity() -> str:
    """``pid generation worker``; 0 where the environment does not say."""
    generation = os.environ.get("SOCKWAY_GENERATION", "0")
    worker = os.environ.get("SOCKWAY_WORKER", "0")
    return f"{os.getpid()} {generation} {worker}"


def inherited_sockets() -> list[socket.socket]:
    """The sockets that the parent passed on, as systemd does (sd_listen_fds(3))."""
    count = int(os.environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=FIRST_FD + number) for number in range(count)]


def notify_ready() -> None:
    """Tell the parent READY=1, where it asks for that (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(b"READY=1", address)
