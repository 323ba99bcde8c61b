"""What operators lose days on is found: each thing broken, then looked for."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from sockway.balancer.diagnosis import diagnose
from sockway.kernel.features import Feature
from sockway.lab.fleet import VIPS, Fleet
from sockway.lab.network import LINK, Node
from tests.lab.fleets import fleet_up

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One balancer, two backends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOCKWAY_RUNTIME", str(tmp_path_factory.mktemp("run")))
        with fleet_up({"http3": False}, balancers=1, backends=2) as made:
            yield made


def found(node: Node) -> dict[str, Feature]:
    """Findings by the last part of their names."""
    return {f.name.partition(": ")[2]: f for f in node.run(diagnose)}


def write(node: Node, path: str, value: str) -> None:
    """Set a sysctl of a host."""
    node.run(lambda: Path("/proc/sys/net", path).write_text(value, encoding="ascii"))


def only(node: Node, name: str, words: str) -> None:
    """This is found, says these words and a way out, and nothing else is."""
    until = time.monotonic() + 10  # a neighbour may be asked for again after a change
    while True:
        trouble = {key: f for key, f in found(node).items() if not f.ok}
        if set(trouble) == {name} or time.monotonic() > until:
            break
        time.sleep(0.1)
    assert set(trouble) == {name}
    assert words in trouble[name].detail
    assert trouble[name].remedy


def test_a_whole_fleet_has_nothing(fleet: Fleet) -> None:
    """Each question is asked, and answered with yes."""
    balancer = found(fleet.lab.node("balancer1"))
    assert all(f.ok and f.detail and not f.remedy for f in balancer.values())
    assert set(balancer) == {
        "next hops",
        "MTU",
        "interfaces",
        "XDP mode",
        "redirects",
        "offloads",
    }
    backend = found(fleet.lab.node("backend1"))
    assert all(f.ok for f in backend.values())
    assert {"VIPs on lo", "ARP", "rp_filter", "tunnel ends", "balancers"} <= set(backend)


def test_no_next_hop(fleet: Fleet) -> None:
    """The router's address is gone from its table of neighbours, and does not answer."""
    node = fleet.lab.node("balancer1")
    write(fleet.lab.node("router"), "ipv4/conf/balancer1/arp_ignore", "8")

    def forget() -> None:
        with IPRoute() as route:
            index = route.link_lookup(ifname=LINK)[0]
            for each in route.get_neighbours(ifindex=index, family=socket.AF_INET):
                route.neigh("del", dst=each.get_attr("NDA_DST"), ifindex=index)

    node.run(forget)
    try:
        only(node, "next hops", "unknown for backend1 (10.77.")
    finally:
        write(fleet.lab.node("router"), "ipv4/conf/balancer1/arp_ignore", "0")


def test_a_path_that_is_too_narrow(fleet: Fleet) -> None:
    """1,500 octets and the tunnel's 20."""
    node = fleet.lab.node("balancer1")

    def mtu(value: int) -> None:
        with IPRoute() as route:
            route.link("set", index=route.link_lookup(ifname=LINK)[0], mtu=value)

    node.run(lambda: mtu(1500))
    try:
        only(node, "MTU", "1500 of 1520")
    finally:
        node.run(lambda: mtu(1600))


def test_a_vip_that_is_not_on_lo(fleet: Fleet) -> None:
    """Somebody took it off."""
    node = fleet.lab.node("backend1")

    def change(verb: str) -> None:
        with IPRoute() as route:
            index = route.link_lookup(ifname="lo")[0]
            route.addr(verb, index=index, address=VIPS[0], prefixlen=32)

    node.run(lambda: change("del"))
    try:
        only(node, "VIPs on lo", VIPS[0])
    finally:
        node.run(lambda: change("add"))


def test_arp_for_a_vip(fleet: Fleet) -> None:
    """The host would answer for all its addresses on any link."""
    node = fleet.lab.node("backend1")
    write(node, "ipv4/conf/all/arp_ignore", "0")
    try:
        only(node, "ARP", "answered")
    finally:
        write(node, "ipv4/conf/all/arp_ignore", "1")


def test_a_strict_reverse_path_filter(fleet: Fleet) -> None:
    """Packets of clients would be dropped without a word."""
    node = fleet.lab.node("backend1")
    write(node, f"ipv4/conf/{LINK}/rp_filter", "1")
    try:
        only(node, "rp_filter", LINK)
    finally:
        write(node, f"ipv4/conf/{LINK}/rp_filter", "2")
