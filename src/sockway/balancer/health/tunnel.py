"""The way of checks: a program that puts marked packets into the tunnel to one backend."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final, Self

from sockway.balancer.layout import IpAddress
from sockway.balancer.nexthop import WayOut
from sockway.balancer.spec import PoolSpec
from sockway.errors import ConfigError
from sockway.kernel import BpfObject, Link, ObjectLayout

LAYOUT: Final = ObjectLayout("health")
MARK_SHIFT: Final = 16
_TTL: Final = 64
_SOURCE_PORT: Final = 0xC000


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


class CheckTunnel:
    """The program on all interfaces that checks leave by; closing it takes it off.

    Its attachments are not pinned: when the agent ends, however it ends, they are gone.
    """

    def __init__(self, made: BpfObject, mark: int) -> None:
        """Take over a loaded object; see `open`."""
        self._made = made
        self._mark = mark
        self._links: dict[str, Link] = {}
        self._numbers: set[int] = set()

    @classmethod
    def open(cls, mark: int) -> Self:
        """Load the program.

        Args:
            mark: the upper 16 bits of the marks of checks' packets.

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
        return cls(made, mark)

    def lead(self, paths: Iterable[Path]) -> None:
        """Have exactly these paths.

        Raises:
            FeatureError: the kernel takes no tc program by a link.

        """
        wanted = {path.number: path for path in paths}
        ways = self._made.map("ways")
        for number in self._numbers - wanted.keys():
            del ways[number]
        for number, path in wanted.items():
            ways[number] = _way(path)
        self._numbers = set(wanted)
        interfaces = {path.interface: path.way.ifindex for path in wanted.values()}
        for gone in self._links.keys() - interfaces.keys():
            self._links.pop(gone).close()
        for name in interfaces.keys() - self._links.keys():
            with self._made.program("checks") as program:
                self._links[name] = program.attach_tcx(interfaces[name], incoming=False)

    def socket(self, path: Path, family: int, kind: int) -> socket.socket:
        """A socket whose packets go to this path's backend."""
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            mark = self._mark << MARK_SHIFT | path.number
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, path.interface.encode())
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
            for link in self._links.values():
                stack.callback(link.close)
        self._links.clear()


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
    source = _source(path)
    if isinstance(path.address, IPv4Address):
        head = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0x4000, _TTL, 0, 0)
    else:
        head = struct.pack("!IHBB", 6 << 28, 0, 0, _TTL)
    head += source.packed + path.address.packed
    if path.pool.encapsulation == "gue":
        head += struct.pack("!HHHH", _SOURCE_PORT, path.pool.gue_port, 0, 0)
    return head


def _source(path: Path) -> IpAddress:
    """An address within what the pool's tunnels come from."""
    given = path.pool.source4 if path.address.version == 4 else path.pool.source6  # noqa: PLR2004
    if given is not None:
        return given.network_address if given.num_addresses == 1 else given.network_address + 1
    if path.way.source is None:
        raise ConfigError(
            f"this host has no address towards {path.address}", hint="give one, or set source4/6"
        )
    return path.way.source


__all__ = ["CheckTunnel", "Path"]
