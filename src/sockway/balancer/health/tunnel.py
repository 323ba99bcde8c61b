"""The way of checks: a program that puts marked packets into the tunnel to one backend."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final, Self

from sockway.balancer.config import headers_of
from sockway.balancer.layout import IpAddress
from sockway.balancer.nexthop import WayOut
from sockway.balancer.spec import PoolSpec
from sockway.errors import FeatureError
from sockway.kernel import BpfObject, ObjectLayout, clsact

LAYOUT: Final = ObjectLayout("health")
MARK_SHIFT: Final = 16
_TTL: Final = 64
_SOURCE_PORT: Final = 0xC000
_IP_AND_TCP: Final = {socket.AF_INET: 40, socket.AF_INET6: 60}
_LEAST_MSS: Final = 88  # that the kernel takes


@dataclass(frozen=True)
class Path:
    """How checks get to one backend of one pool."""

    number: int
    """In the mark; 1 to 65535."""
    interface: str
    """That they leave by."""
    way: WayOut
    address: IpAddress
    """Of the tunnel's end."""
    pool: PoolSpec
    source: IpAddress
    """Of the tunnel."""

    @property
    def room(self) -> int:
        """Octets of an IP packet that fit into the tunnel."""
        mtu = min(self.way.mtu, self.pool.mtu or self.way.mtu)
        return mtu - headers_of(self.pool, self.address.version)


class CheckTunnel:
    """The program on all interfaces that checks leave by; closing it takes it off.

    Its attachments are not pinned: when the agent ends, they are gone.
    """

    def __init__(self, made: BpfObject, mark: int, name: str) -> None:
        """Take over a loaded object; see `open`."""
        self._made = made
        self._mark = mark
        self._name = name
        self._attached: dict[int, contextlib.ExitStack] = {}
        """By the interface's number: one that is made anew has another."""
        self._numbers: set[int] = set()

    @classmethod
    def open(cls, mark: int, name: str = "main") -> Self:
        """Load the program.

        Args:
            mark: the upper 16 bits of the marks of checks' packets.
            name: of the balancer; another one's checks have filters of their own.

        Raises:
            KernelError: the kernel refused it.

        """
        made = BpfObject.open(LAYOUT.source, name="health")
        try:
            config = LAYOUT.struct("check_config")()
            config.mark = mark << MARK_SHIFT
            config.abi = LAYOUT.constant("check_limit", "CHECK_ABI")
            made.rodata["config"] = config
            made.load()
        except BaseException:
            made.close()
            raise
        return cls(made, mark, name)

    def lead(self, paths: Iterable[Path]) -> None:
        """Have exactly these paths.

        Raises:
            KernelError: an interface is gone.

        """
        wanted = {path.number: path for path in paths}
        ways = self._made.map("ways")
        for number in self._numbers - wanted.keys():
            del ways[number]
        self._numbers &= wanted.keys()
        for number, path in wanted.items():
            ways[number] = _way(path)
            self._numbers.add(number)
        interfaces = {path.way.ifindex for path in wanted.values()}
        for gone in self._attached.keys() - interfaces:
            self._attached.pop(gone).close()
        for index in interfaces - self._attached.keys():
            self._attached[index] = self._attach(index)

    def _attach(self, index: int) -> contextlib.ExitStack:
        """Attach to what an interface sends; closing what is returned ends it.

        A link ends with this process however that ends. A filter of `clsact`, which kernels before
        6.6 have instead, stays after a kill: it passes what has no mark of checks, and the next
        process that checks for this balancer takes it over by its name.
        """
        end = contextlib.ExitStack()
        with self._made.program("checks") as program:
            try:
                end.callback(program.attach_tcx(index, incoming=False).close)
            except FeatureError:
                name = f"sockway-checks-{self._name}"
                made = clsact.attach(index, program, name, incoming=False)
                end.callback(clsact.detach, index, name, incoming=False, with_clsact=made)
        return end

    def socket(self, path: Path, family: int, kind: int) -> socket.socket:
        """A socket whose packets go to this path's backend."""
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            mark = self._mark << MARK_SHIFT | path.number
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, path.interface.encode())
            if kind == socket.SOCK_STREAM:
                # The kernel knows of no tunnel, and would fill segments that don't fit into it.
                mss = max(_LEAST_MSS, path.room - _IP_AND_TCP[socket.AddressFamily(family)])
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
        except BaseException:
            sock.close()
            raise
        return sock

    def counters(self) -> Mapping[str, int]:
        """Packets `sent` into tunnels, and `refused`: marked with no path behind the mark."""
        rows = self._made.map("counters")[0]
        return {name: sum(int(getattr(r, name)) for r in rows) for name in ("sent", "refused")}

    def close(self) -> None:
        """Take the program off all interfaces."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._made.close)
            for end in self._attached.values():
                stack.callback(end.close)
        self._attached.clear()


def _way(path: Path) -> object:
    outer = _outer(path)
    made = LAYOUT.struct("check_way")()
    made.link[:] = (path.way.next_hop or bytes(6)) + path.way.own
    made.outer[: len(outer)] = outer
    made.length = len(outer)
    made.is_ipv4 = isinstance(path.address, IPv4Address)
    made.gue = path.pool.encapsulation == "gue"
    return made


def _outer(path: Path) -> bytes:
    """The outer headers; lengths, protocol and checksum are the program's to fill in."""
    if isinstance(path.address, IPv4Address):
        head = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0x4000, _TTL, 0, 0)
    else:
        head = struct.pack("!IHBB", 6 << 28, 0, 0, _TTL)
    head += path.source.packed + path.address.packed
    if path.pool.encapsulation == "gue":
        head += struct.pack("!HHHH", _SOURCE_PORT, path.pool.gue_port, 0, 0)
    return head


def source_of(pool: PoolSpec, address: IpAddress, way: WayOut) -> IpAddress | None:
    """What the pool's tunnels to an address come from: one of its sources, or the host's own."""
    given = pool.source4 if isinstance(address, IPv4Address) else pool.source6
    if given is None:
        return way.source
    return given.network_address if given.num_addresses == 1 else given.network_address + 1


__all__ = ["CheckTunnel", "Path", "source_of"]
