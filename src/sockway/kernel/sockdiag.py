"""What the kernel says of sockets (sock_diag): queues, owners, connections.

Accept queues and unread bytes are the two things that a release waits for. pyroute2 speaks
netlink; here its messages become the few facts that the layers above ask for.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from sockway.kernel.ffi import error_of

_ESTABLISHED: Final = 1 << 1
_CLOSE: Final = 1 << 7
_CLOSE_WAIT: Final = 1 << 8
_LISTEN: Final = 1 << 10
_NEEDS: Final = "the kernel needs CONFIG_INET_TCP_DIAG and _UDP_DIAG: modprobe tcp_diag udp_diag"
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True)
class Listener:
    """A TCP socket that listens."""

    port: int
    cookie: int
    """SO_COOKIE of the socket."""
    inode: int
    accept_queue: int
    """Connections that wait to be accepted."""


@dataclass(frozen=True)
class Connection:
    """A TCP connection that is established, or that only its peer has closed."""

    local_port: int
    peer_port: int
    inode: int
    """0 while it is not accepted."""
    unread: int
    """Octets that the process has not read."""


def listeners(ports: Iterable[int] = ()) -> list[Listener]:
    """TCP listeners of this network namespace, of these ports or all."""
    return [
        Listener(m["idiag_sport"], m["idiag_cookie"], m["idiag_inode"], m["idiag_rqueue"])
        for m in _dump(socket.IPPROTO_TCP, _LISTEN, ports)
    ]


def established(ports: Iterable[int] = ()) -> list[Connection]:
    """TCP connections of this network namespace with one of these local ports, or all."""
    return [
        Connection(m["idiag_sport"], m["idiag_dport"], m["idiag_inode"], m["idiag_rqueue"])
        for m in _dump(socket.IPPROTO_TCP, _ESTABLISHED | _CLOSE_WAIT, ports)
    ]


def tcp_sockets(
    ports: Iterable[int], families: Collection[int] = _FAMILIES
) -> tuple[list[Listener], list[Connection]]:
    """Listeners and connections of these local ports, in one question.

    Args:
        ports: at least one.
        families: AF_INET, AF_INET6 or both. Connections of IPv4 clients to an IPv6 socket are
            the latter's.

    """
    waiting: list[Listener] = []
    connected: list[Connection] = []
    states = _ESTABLISHED | _CLOSE_WAIT | _LISTEN
    for m in _dump(socket.IPPROTO_TCP, states, ports, families):
        port, inode, unread = m["idiag_sport"], m["idiag_inode"], m["idiag_rqueue"]
        if 1 << m["idiag_state"] == _LISTEN:
            waiting.append(Listener(port, m["idiag_cookie"], inode, unread))
        else:
            connected.append(Connection(port, m["idiag_dport"], inode, unread))
    return waiting, connected


def udp_inodes(cookies: Collection[int], ports: Iterable[int] = ()) -> set[int]:
    """Inodes of the unconnected UDP sockets with these cookies."""
    wanted = set(cookies)
    if not wanted:
        return set()
    messages = _dump(socket.IPPROTO_UDP, _CLOSE, ports)
    return {int(m["idiag_inode"]) for m in messages if m["idiag_cookie"] in wanted}


def _dump(
    protocol: int, states: int, ports: Iterable[int], families: Collection[int] = _FAMILIES
) -> Iterator[Any]:
    # pyroute2 runs an event loop of its own for each call, which a thread that has one running
    # refuses; so the call has a thread of its own. It starts in the caller's namespace.
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield from executor.submit(_ask, protocol, states, set(ports), families).result()


def _ask(protocol: int, states: int, ports: set[int], families: Collection[int]) -> list[Any]:
    # Here, for it takes longer to import than all else together, and few processes ask.
    from pyroute2 import DiagSocket  # noqa: PLC0415
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    try:
        with DiagSocket() as diag:
            diag.bind()
            messages = [
                message
                for family in families
                for port in ports or {0}
                for message in diag.get_sock_stats(
                    family=family, states=states, protocol=protocol, sport=port
                )
            ]
    except NetlinkError as error:
        raise error_of(error.code, "ask sock_diag", _NEEDS) from error
    # A kernel that has no module for this protocol ends the dump with a message that has an
    # error in place of a socket, which pyroute2 hands on as if it were one.
    if any("idiag_sport" not in message for message in messages):
        raise error_of(errno.ENOENT, "ask sock_diag", _NEEDS)
    return messages
