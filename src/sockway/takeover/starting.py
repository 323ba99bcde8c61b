"""What a process does before it is a server: imports, sockets, and how it passes them on."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

FIRST_FD: Final = 3
"""The first descriptor that is passed on (sd_listen_fds(3))."""
HIGH_FD: Final = 100
"""Above what is passed on."""
_APPLICATION: Final = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_][\w.]*(\(\))?")


def vip_key(url: str) -> str:
    """What a VIP is, whatever its options: scheme, address and port."""
    parts = urlsplit(url)
    host = parts.hostname or "::"
    with contextlib.suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    return f"{parts.scheme}://[{host}]:{parts.port or 0}"


def bind(url: str) -> socket.socket:
    """A socket bound to a VIP (``tcp://[::]:8080``) with SO_REUSEPORT, not listening.

    Raises:
        OSError: the address can't be had.

    """
    parts = urlsplit(url)
    host, port = parts.hostname or "::", parts.port or 0
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if parts.scheme == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def import_first(module: str | None, arguments: Sequence[str]) -> None:
    """Import what takes long, before there are sockets: the server, and what it is to serve.

    Applications are arguments as ``package.module:name``. What can't be imported is left to the
    server, which says so in its own words.
    """
    if module is not None:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    for argument in arguments:
        if found := _APPLICATION.fullmatch(argument):
            with contextlib.suppress(ImportError):
                importlib.import_module(found[1])


def pass_on(sockets: Sequence[socket.socket], names: str | None = None) -> None:
    """Make sockets descriptors 3 and up, and say so in the environment."""
    # Descriptors out of the way first, so that none is where another shall be.
    high = []
    for sock in sockets:
        high.append(fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, HIGH_FD))
        sock.close()
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, FIRST_FD + number, inheritable=True)
        os.close(descriptor)
    os.environ |= {"LISTEN_FDS": str(len(high)), "LISTEN_PID": str(os.getpid())}
    if names:
        os.environ["LISTEN_FDNAMES"] = names


__all__ = ["FIRST_FD", "HIGH_FD", "bind", "import_first", "pass_on", "vip_key"]
