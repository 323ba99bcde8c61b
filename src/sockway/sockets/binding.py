"""Sockets for VIPs: one per worker and VIP, in the VIP's reuseport group."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from ipaddress import IPv6Address

from sockway.errors import KernelError, PermissionDenied, StateError
from sockway.wire.addresses import Vip

_HINTS = {
    errno.EADDRINUSE: (
        "another process has it without SO_REUSEPORT, or under another user: all sockets of a "
        "port must belong to one user; `ss -lntup` shows who has it"
    ),
    errno.EADDRNOTAVAIL: "the address is on no interface here; add it, or bind a wildcard",
    errno.EAFNOSUPPORT: "this host has no such address family; is IPv6 switched off?",
    errno.EMFILE: "too many open files: raise LimitNOFILE (ulimit -n)",
    errno.ENFILE: "too many open files on this host: raise fs.file-max",
}


def family_of(vip: Vip) -> socket.AddressFamily:
    """The address family of a VIP's sockets."""
    return socket.AF_INET6 if isinstance(vip.address, IPv6Address) else socket.AF_INET


def open_socket(vip: Vip, backlog: int, attach: Callable[[socket.socket], None]) -> socket.socket:
    """A socket bound to the VIP with SO_REUSEPORT; it listens where the VIP is TCP.

    A program that is attached before the bind governs the group from its first moment, but a
    socket that has one can't join a group that is there already. So a new group is tried first,
    and a socket that joined one gets the program after: it may have an older build's.

    Args:
        vip: what to bind.
        backlog: longest accept queue (TCP), in connections.
        attach: attaches the router's program to a socket's group.

    Raises:
        StateError: the address is in use by a socket that can't share it.
        PermissionDenied: the port is privileged and this process is not.
        KernelError: any other refusal, with the errno's name.

    """
    try:
        return _bound(vip, backlog, attach)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise _refused(vip, error) from error
    sock = join_socket(vip, backlog)
    try:
        attach(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def join_socket(vip: Vip, backlog: int) -> socket.socket:
    """`open_socket` for a group that has the program."""
    try:
        return _bound(vip, backlog, None)
    except OSError as error:
        raise _refused(vip, error) from error


def _bound(
    vip: Vip, backlog: int, before_bind: Callable[[socket.socket], None] | None
) -> socket.socket:
    family = family_of(vip)
    kind = socket.SOCK_STREAM if vip.protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if vip.protocol == "tcp":
            # Connections in TIME_WAIT of an earlier run must not stand in the way.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(vip.v6only))
        if before_bind is not None:
            before_bind(sock)
        sock.bind((str(vip.address), vip.port))
        if vip.protocol == "tcp":
            sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _refused(vip: Vip, error: OSError) -> Exception:
    number = error.errno or 0
    name = errno.errorcode.get(number, str(number))
    message = f"can't bind {vip}: {os.strerror(number)} ({name})"
    hint = _HINTS.get(number)
    if number == errno.EADDRINUSE:
        return StateError(message, hint=hint)
    if number in {errno.EACCES, errno.EPERM}:
        return PermissionDenied(
            message, hint="ports below 1024 need CAP_NET_BIND_SERVICE; run as root"
        )
    return KernelError(message, hint=hint)
