"""A balancer and a backend over each kind of device: every packet arrives, and is answered."""

from __future__ import annotations

import pytest

from sockway.balancer import Balancer, attach
from sockway.cli.balancer_pages import status_of
from tests.network.links import (
    OVER,
    Ends,
    address_backends,
    address_clients,
    link,
    pair,
)
from tests.network.site import VIP4, VIP6, Server, Site, answers, echoed

pytestmark = pytest.mark.root

DATAGRAMS = 40
OCTETS = 1 << 16
NATIVE = {"veth-xdp", "bond"}
"""What takes frames that XDP redirects: bonds do over devices that do."""


def nothing_is_lost(site: Site, balancer: Balancer, device: str, size: int = 64) -> str:
    """Exchange datagrams and TCP by both versions of IP; return the mode that status tells."""
    before = balancer.counters().sent
    with Server.serving(site.backend, VIP4, VIP6) as server:
        for vip in (VIP4, VIP6):
            assert answers(site.client, vip, DATAGRAMS, size) == DATAGRAMS
            assert echoed(site.client, vip, OCTETS) == OCTETS
        assert len(server.datagrams) == 2 * DATAGRAMS
        assert (server.connections, server.octets) == (2, 2 * OCTETS)
    assert balancer.counters().sent - before > 2 * DATAGRAMS
    undelivered = balancer.counters().undelivered
    assert undelivered is None or undelivered.frames == 0
    told = status_of(balancer)["modes"][device]
    assert told["mode"] == attach.mode_of(device)
    assert told["reason"]
    return str(told["mode"])


@pytest.mark.parametrize("kind", OVER)
def test_the_way_out_and_the_backend(network: Site, kind: str) -> None:
    """Packets come in by a veth that may be native, and leave by the device."""
    way_in = link(network.balancer, network.client, "in", "veth-xdp")
    way_out = link(network.balancer, network.backend, "out", kind)
    address_clients(network, way_in)
    address_backends(network, way_out)
    with network.opened(way_out.far), network.balanced(way_in.near, "10.2.0.2") as balancer:
        # The backend's program is one on the veth peer, where that is the device itself.
        native = kind == "veth"
        mode = nothing_is_lost(network, balancer, way_in.near)
        if kind != "bond":
            assert (mode == "native") == native


@pytest.mark.parametrize("kind", OVER)
def test_the_way_in(network: Site, kind: str) -> None:
    """Packets come in by the device, and leave by a veth that takes them natively."""
    way_in = link(network.balancer, network.client, "in", kind)
    way_out = link(network.balancer, network.backend, "out", "veth-xdp")
    address_clients(network, way_in)
    address_backends(network, way_out)
    network.backend.ip(f"link set {way_out.far} xdp off")
    with network.opened(way_out.far), network.balanced(way_in.near, "10.2.0.2") as balancer:
        mode = nothing_is_lost(network, balancer, way_in.near)
        if kind != "bond":
            assert mode == "generic"


def test_a_trunk(network: Site) -> None:
    """The balancer's program is on the trunk itself, and sees the tags of two VLANs."""
    trunk = pair(network.balancer, network.client, "in")
    out = pair(network.balancer, network.backend, "out")
    ends = []
    for carrier, far, number in ((trunk, network.client, 7), (out, network.backend, 8)):
        for place, device in ((network.balancer, carrier.near), (far, carrier.far)):
            place.ip(f"link add link {device} name {device}.{number} type vlan id {number}")
        ends.append(Ends(f"{carrier.near}.{number}", f"{carrier.far}.{number}"))
    address_clients(network, ends[0])
    address_backends(network, ends[1])
    with network.opened(ends[1].far), network.balanced(trunk.near, "10.2.0.2") as balancer:
        nothing_is_lost(network, balancer, trunk.near)


def test_jumbo_frames(network: Site) -> None:
    """Frames of several buffers, in both directions."""
    way_in = link(network.balancer, network.client, "in", "veth-xdp", mtu=9000)
    way_out = link(network.balancer, network.backend, "out", "veth", mtu=9100)
    address_clients(network, way_in, mtu=9000)
    address_backends(network, way_out, mtu=9100)
    with network.opened(way_out.far), network.balanced(way_in.near, "10.2.0.2") as balancer:
        nothing_is_lost(network, balancer, way_in.near, size=8900)
