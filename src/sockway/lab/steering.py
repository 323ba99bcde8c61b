"""Ways to have many VIPs of one port: a bind for each, one for all, or sk_lookup.

Each is opened in a network namespace of the experiment's own. VIPs are addresses of 127.0.0.0/8,
which a namespace has without being given them.
"""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Final, Protocol

from sockway.kernel import BpfObject, Link, Netns
from sockway.kernel.layout import ObjectLayout

PORT: Final = 443
ELSEWHERE: Final = 4430
"""Where the socket is bound that sk_lookup names."""
_BACKLOG: Final = 16
_IPV4_MAPPED: Final = 96
"""Bits before an IPv4 address in an IPv6 one."""


def vip(number: int) -> str:
    """The VIP of a number, from 0."""
    return str(IPv4Address("127.1.0.1") + number)


class Way(Protocol):
    """A way to have VIPs."""

    def add(self, address: str) -> float:
        """Have one more; the seconds that took."""

    def socket_of(self, address: str) -> socket.socket:
        """The socket that gets what is for a VIP."""

    def close(self) -> None:
        """Have none any more."""


def _open(kind: socket.SocketKind, *, shared: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.settimeout(3)
    return sock


def _bind(sock: socket.socket, address: str, port: int) -> float:
    """Bind, and listen where that is wanted; the seconds of both."""
    began = time.perf_counter_ns()
    sock.bind((address, port))
    if sock.type == socket.SOCK_STREAM:
        sock.listen(_BACKLOG)
    return (time.perf_counter_ns() - began) / 1e9


@dataclass
class BindEach:
    """A socket for each VIP."""

    kind: socket.SocketKind
    shared: bool
    """With SO_REUSEPORT, as servers with several workers have it."""
    _held: dict[str, socket.socket] = field(default_factory=dict)

    def add(self, address: str) -> float:
        """Bind one more socket."""
        sock = _open(self.kind, shared=self.shared)
        self._held[address] = sock
        return _bind(sock, address, PORT)

    def socket_of(self, address: str) -> socket.socket:
        """The VIP's own."""
        return self._held[address]

    def close(self) -> None:
        """Close all."""
        for sock in self._held.values():
            sock.close()
        self._held.clear()


class BindWildcard:
    """One socket for all addresses; to tell VIPs apart is left to who reads it."""

    def __init__(self, kind: socket.SocketKind) -> None:
        """Nothing is bound yet."""
        self.kind = kind
        self._sock: socket.socket | None = None

    def add(self, address: str) -> float:
        """Bind, for the first; nothing for all others."""
        del address
        if self._sock is not None:
            return 0.0
        self._sock = _open(self.kind, shared=True)
        return _bind(self._sock, "0.0.0.0", PORT)

    def again(self) -> float:
        """Close it and bind it again; the seconds of binding."""
        self.close()
        return self.add("")

    def socket_of(self, address: str) -> socket.socket:
        """The one."""
        del address
        assert self._sock is not None  # noqa: S101 - add() comes first
        return self._sock

    def close(self) -> None:
        """Close it."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


class SkLookup:
    """One socket, bound elsewhere, and an entry for each VIP or for a whole prefix."""

    def __init__(self, kind: socket.SocketKind) -> None:
        """Load the program and attach it to the namespace of this thread."""
        layout = ObjectLayout("steer")
        self.kind = kind
        self._stack = contextlib.ExitStack()
        try:
            spec = self._stack.enter_context(BpfObject.open(layout.source, name="steer"))
            spec.load()
            self._fixed = layout.constant("steer_limit", "STEER_FIXED_BITS") + _IPV4_MAPPED
            self._key = layout.struct("steer_key")
            self._prefixes: Any = self._stack.enter_context(spec.map("prefixes"))
            sockets: Any = self._stack.enter_context(spec.map("sockets"))
            self._sock = self._stack.enter_context(_open(kind, shared=True))
            _bind(self._sock, "127.0.0.1", ELSEWHERE)
            sockets[0] = self._sock.fileno()
            program = self._stack.enter_context(spec.program("steer"))
            here = Netns.current()
            self._stack.callback(here.close)
            self._link: Link = self._stack.enter_context(program.attach_sk_lookup(here.fd))
        except BaseException:
            self._stack.close()
            raise

    def add(self, address: str) -> float:
        """Write an entry for one VIP."""
        return self.add_prefix(address, 32)

    def add_prefix(self, address: str, length: int) -> float:
        """Write one entry for all addresses of a prefix."""
        key = self._key(bits=self._fixed + length, port=PORT)
        key.protocol = socket.IPPROTO_TCP if self.kind == socket.SOCK_STREAM else socket.IPPROTO_UDP
        mapped = bytes(10) + b"\xff\xff" + IPv4Address(address).packed
        key.address[:] = [int.from_bytes(mapped[at : at + 4], "little") for at in range(0, 16, 4)]
        began = time.perf_counter_ns()
        self._prefixes[key] = 0
        return (time.perf_counter_ns() - began) / 1e9

    def socket_of(self, address: str) -> socket.socket:
        """The one."""
        del address
        return self._sock

    def close(self) -> None:
        """Detach, and close all."""
        self._stack.close()


def reach(sock: socket.socket, address: str) -> float:
    """Send something to a VIP and get it by this socket; the seconds from one to the other.

    Raises:
        TimeoutError: it does not arrive there.

    """
    with socket.socket(socket.AF_INET, sock.type) as client:
        client.settimeout(3)
        began = time.perf_counter_ns()
        if sock.type == socket.SOCK_DGRAM:
            client.sendto(b"?", (address, PORT))
            sock.recv(1)
        else:
            client.connect((address, PORT))
            sock.accept()[0].close()
        return (time.perf_counter_ns() - began) / 1e9


__all__ = ["PORT", "BindEach", "BindWildcard", "SkLookup", "Way", "reach", "vip"]
