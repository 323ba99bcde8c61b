"""The way out to each backend: interface, link addresses, MTU, own address.

The kernel's routing and neighbour tables know it; asking them for each packet would cost more than
all else that is done to it, so the control plane asks, writes the answer where packets find it,
and asks again from time to time.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from sockway.balancer.layout import IpAddress
from sockway.errors import SockwayError

ROUTES: Final = 200
"""Routes that are asked for again at a time."""
_DISCARD: Final = 9
_USABLE: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # REACHABLE STALE DELAY PROBE NOARP PERM.


@dataclass(frozen=True)
class WayOut:
    """How packets leave towards an address."""

    ifindex: int
    interface: str
    own: bytes
    """Link address of the interface."""
    next_hop: bytes | None
    """Link address of the next hop; None: it does not answer."""
    gateway: IpAddress
    """The next hop: a router, or the address itself."""
    source: IpAddress | None
    """The address that the host would use itself."""
    mtu: int


Found = Mapping[IpAddress, WayOut | None]
"""The ways out to addresses that were asked for; None: there is no route."""


def ways_out(addresses: Iterable[IpAddress], patience: float = 1.0) -> Found:
    """The ways out to these addresses.

    Args:
        addresses: of backends.
        patience: seconds to wait for neighbours that have not been heard of yet.

    """
    wanted = set(addresses)
    if not wanted:
        return {}
    with _route() as route:
        links = _links(route)
        neighbours = _neighbours(route)
        found = {
            address: way for address in wanted if (way := _way(route, links, neighbours, address))
        }
        silent = {way.gateway for way in found.values() if way.next_hop is None}
        if silent:
            _knock(silent)
            deadline = time.monotonic() + patience
            while silent - neighbours.keys() and time.monotonic() < deadline:
                time.sleep(0.02)
                neighbours = _neighbours(route)
            found = {a: _met(way, neighbours) for a, way in found.items()}
    return {address: found.get(address) for address in wanted}


class Ways:
    """The ways out to many addresses, looked at again and again.

    Link addresses are asked for each time, all at once; routes, which seldom change and cost a
    millisecond each, by turns.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known: dict[IpAddress, WayOut] = {}
        """The one asked for the longest time ago is the first."""

    @property
    def known(self) -> Found:
        """What the last look found."""
        return self._known

    def look(self, addresses: Iterable[IpAddress], routes: int = ROUTES) -> Found:
        """The ways out as they are now.

        Args:
            addresses: of all backends.
            routes: how many of those that are known are asked for again.

        """
        wanted = set(addresses)
        known = {a: way for a, way in self._known.items() if a in wanted}
        again = list(known)[:routes]
        asked = (wanted - known.keys()) | set(again)
        found = ways_out(asked, patience=0)
        for address in again:
            del known[address]
        with _route() as route:
            neighbours = _neighbours(route)
        known = {address: _met(way, neighbours) for address, way in known.items()}
        known.update((address, way) for address, way in found.items() if way)
        self._known = known
        return {address: known.get(address) for address in wanted}


def _met(way: WayOut, neighbours: Mapping[IpAddress, bytes]) -> WayOut:
    return replace(way, next_hop=neighbours.get(way.gateway))


@contextlib.contextmanager
def _route() -> Iterator[Any]:
    # Here, for it takes longer to import than all else together.
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as route:
        yield route


@dataclass(frozen=True)
class _Link:
    name: str
    address: bytes
    mtu: int


def _links(route: Any) -> dict[int, _Link]:
    return {
        int(link["index"]): _Link(
            str(link.get_attr("IFLA_IFNAME")),
            _link_address(link.get_attr("IFLA_ADDRESS")) or bytes(6),
            int(link.get_attr("IFLA_MTU")),
        )
        for link in route.get_links()
    }


def _way(
    route: Any,
    links: Mapping[int, _Link],
    neighbours: Mapping[IpAddress, bytes],
    address: IpAddress,
) -> WayOut | None:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        answer = route.route("get", dst=str(address), family=family)
    except NetlinkError:
        return None
    if not answer or answer[0].get_attr("RTA_OIF") is None:
        return None
    first = answer[0]
    ifindex = int(first.get_attr("RTA_OIF"))
    link = links.get(ifindex)
    if link is None:  # it has come this moment: the next look will know it
        return None
    gateway = ip_address(first.get_attr("RTA_GATEWAY") or str(address))
    source = first.get_attr("RTA_PREFSRC")
    metrics = first.get_attr("RTA_METRICS")
    mtu = (metrics.get_attr("RTAX_MTU") if metrics else None) or link.mtu
    return WayOut(
        ifindex=ifindex,
        interface=link.name,
        own=link.address,
        next_hop=neighbours.get(gateway),
        gateway=gateway,
        source=ip_address(source) if source else None,
        mtu=min(int(mtu), 65_535),
    )


def _neighbours(route: Any) -> dict[IpAddress, bytes]:
    found: dict[IpAddress, bytes] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for neighbour in route.get_neighbours(family=family):
            link = _link_address(neighbour.get_attr("NDA_LLADDR"))
            target = neighbour.get_attr("NDA_DST")
            if link and target and neighbour["state"] & _USABLE:
                found[ip_address(target)] = link
    return found


def _link_address(text: str | None) -> bytes | None:
    return bytes.fromhex(text.replace(":", "")) if text else None


def _knock(gateways: Iterable[IpAddress]) -> None:
    """Have the kernel ask for link addresses: a datagram that nobody waits for."""
    for gateway in gateways:
        family = socket.AF_INET6 if isinstance(gateway, IPv6Address) else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", (str(gateway), _DISCARD))


def index_of(interface: str) -> int:
    """The number of an interface.

    Raises:
        SockwayError: there is none of this name.

    """
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        known = ", ".join(name for _, name in socket.if_nameindex())
        raise SockwayError(
            f"there is no interface {interface!r}", hint=f"there are: {known}"
        ) from None
