"""Links between two hosts, of every kind of device that stands over Ethernet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sockway.lab import interfaces
from tests.network.site import Place, Site, reach

CARRIER: Final = 1700
"""MTU below devices that wrap frames; room for VXLAN and a tunnel with IPv6 and GUE."""
TUNNEL: Final = 1560
CLIENT: Final = 1500


@dataclass(frozen=True)
class Ends:
    """What a link is called at its two ends."""

    near: str
    far: str


Make = Callable[[Place, str, int], str]
"""Make a device over a carrier at one end (1 or 2); return its name."""


def _vlan(place: Place, carrier: str, end: int) -> str:
    del end
    place.ip(f"link add link {carrier} name {carrier}.7 type vlan id 7")
    return f"{carrier}.7"


def _bond(place: Place, carrier: str, end: int) -> str:
    del end
    place.ip(
        f"link add {carrier}b type bond mode active-backup miimon 100",
        f"link set {carrier} down",
        f"link set {carrier} master {carrier}b",
    )
    return f"{carrier}b"


def _bridge(place: Place, carrier: str, end: int) -> str:
    del end
    place.ip(f"link add {carrier}br type bridge", f"link set {carrier} master {carrier}br")
    return f"{carrier}br"


def _macvlan(place: Place, carrier: str, end: int) -> str:
    del end
    place.ip(f"link add link {carrier} name {carrier}m type macvlan mode bridge")
    return f"{carrier}m"


def _vxlan(place: Place, carrier: str, end: int) -> str:
    own, other = f"172.16.0.{end}", f"172.16.0.{3 - end}"
    number = 10 + ord(carrier[0])
    place.ip(
        f"addr add {own}/24 dev {carrier}",
        f"link add {carrier}x type vxlan id {number} local {own} remote {other} dstport 4789",
    )
    return f"{carrier}x"


def _itself(place: Place, carrier: str, end: int) -> str:
    del place, end
    return carrier


OVER: Final[dict[str, Make]] = {
    "veth": _itself,
    "vlan": _vlan,
    "bond": _bond,
    "bridge": _bridge,
    "macvlan": _macvlan,
    "vxlan": _vxlan,
}


def pair(near: Place, far: Place, name: str, mtu: int = CARRIER) -> Ends:
    """Join two hosts by a veth pair without offloads."""
    ends = Ends(f"{name}0", f"{name}1")
    near.ip(
        f"link add {ends.near} mtu {mtu} type veth peer name {ends.far} mtu {mtu} netns {far.name}"
    )
    for place, device in ((near, ends.near), (far, ends.far)):
        place.ip(f"link set {device} up")
        place.netns.run(lambda: interfaces.switch_off(device))  # noqa: B023 - run at once
    return ends


def link(near: Place, far: Place, name: str, kind: str, mtu: int = CARRIER) -> Ends:
    """Join two hosts by devices of a kind; `veth-xdp`: the far end has a program."""
    if kind == "veth-xdp":
        ends = pair(near, far, name, mtu)
        far.netns.run(lambda: _take(ends.far))
        return ends
    carriers = pair(near, far, name, mtu)
    make = OVER[kind]
    return Ends(make(near, carriers.near, 1), make(far, carriers.far, 2))


def _take(device: str) -> None:
    with interfaces.netlink() as route:
        interfaces.take_xdp_frames(route.link_lookup(ifname=device)[0])


def address_clients(site: Site, ends: Ends, mtu: int = CLIENT) -> None:
    """Give the link to clients its addresses, and clients their route."""
    site.balancer.settle(ends.near, "10.1.0.1/24", "fd01::1/64", mtu=mtu)
    site.client.settle(ends.far, "10.1.0.2/24", "fd01::2/64", mtu=mtu)
    site.client.ip("route add default via 10.1.0.1", "route add default via fd01::1")
    reach(site.client, "10.1.0.1", "fd01::1")


def address_backends(site: Site, ends: Ends, mtu: int = TUNNEL) -> None:
    """Give the link to backends its addresses, and backends their route."""
    site.balancer.settle(ends.near, "10.2.0.1/24", "fd02::1/64", mtu=mtu)
    site.backend.settle(ends.far, "10.2.0.2/24", "fd02::2/64", mtu=mtu)
    site.backend.ip("route add default via 10.2.0.1", "route add default via fd02::1")
    reach(site.backend, "10.2.0.1", "fd02::1")
