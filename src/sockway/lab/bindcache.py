"""The bind cache's bug: whether this kernel has it."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from errno import EADDRINUSE
from typing import Final

from sockway.lab.steering import PORT

_BUG: Final = (
    "The bind cache's bug, a wildcard with SO_REUSEPORT let in beside a socket that forbade it: "
)
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_HOSTS: Final = {
    socket.AF_INET: ("127.0.0.1", "127.0.0.2", "0.0.0.0"),
    socket.AF_INET6: ("::1", "2001:db8::2", "::"),
}


def is_wrong(family: socket.AddressFamily) -> bool | str:
    """Whether a wildcard can be bound with SO_REUSEPORT beside a socket that forbade that.

    Kernels before 5.8 cached the answer of the socket that was bound last.

    Returns:
        Words, if that can't be said here: only EADDRINUSE for the wildcard means that it is not so.

    """
    first, second, wildcard = _HOSTS[family]
    held: list[socket.socket] = []
    try:
        for host, shared in ((first, False), (second, True)):
            try:
                _bind(held, family, host, shared=shared)
            except OSError as error:
                return f"{host}: {error.strerror}"
        try:
            _bind(held, family, wildcard, shared=True)
        except OSError as error:
            return False if error.errno == EADDRINUSE else f"{wildcard}: {error.strerror}"
    finally:
        for sock in held:
            sock.close()
    return True


def _bind(
    held: list[socket.socket], family: socket.AddressFamily, host: str, *, shared: bool
) -> None:
    sock = socket.socket(family, socket.SOCK_STREAM)
    held.append(sock)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
    sock.bind((host, PORT))


def told(bugs: Mapping[str, bool | str]) -> str:
    """What the probes say, by name of the address family."""
    parts = []
    for words, value in (("has it", True), ("does not have it", False)):
        if names := [name for name, bug in bugs.items() if bug is value]:
            parts.append(f"this kernel {words} for {' and '.join(names)}")
    for name, bug in bugs.items():
        if isinstance(bug, str):
            parts.append(f"it could not be probed for {name} ({bug})")
    return f"{_BUG}{'; '.join(parts)}."


__all__ = ["is_wrong", "told"]
