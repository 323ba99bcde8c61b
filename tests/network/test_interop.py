"""Backends that open tunnels by the kernel's own devices, and know nothing of Sockway.

docs/howto/balancer.md has the same commands.
"""

from __future__ import annotations

import pytest

from tests.network.links import address_backends, address_clients, link
from tests.network.site import VIP4, VIP6, Place, Server, Site, answers, echoed

pytestmark = pytest.mark.root

DATAGRAMS = 20
OCTETS = 1 << 15
GUE_PORT = 6080
OVER_IPV4 = """
ip link add ipip1 type ipip local 10.2.0.2
ip link add sit1 type sit local 10.2.0.2
ip link set ipip1 up
ip link set sit1 up
"""
OVER_IPV6 = """
ip link add ip6tnl1 type ip6tnl mode any local fd02::2
ip link set ip6tnl1 up
"""
VIPS = f"""
ip address add {VIP4}/32 dev lo
ip address add {VIP6}/128 dev lo nodad
sysctl -qw net.ipv4.conf.all.rp_filter=0
for each in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$each; done
"""


def open_tunnels(backend: Place, version: int, encapsulation: str) -> None:
    """Have the kernel of a host open tunnels to it, and serve VIPs."""
    backend.sh((OVER_IPV4 if version == 4 else OVER_IPV6) + VIPS)
    if encapsulation == "gue":
        backend.sh(f"modprobe fou; ip fou add port {GUE_PORT} gue" if version == 4 else
                   f"modprobe fou6; ip -6 fou add port {GUE_PORT} gue")  # fmt: skip


@pytest.mark.parametrize("encapsulation", ["ip", "gue"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_kernels_own_tunnels(network: Site, version: int, encapsulation: str) -> None:
    """IPv4 and IPv6 VIPs in tunnels of both versions: all arrives, and is answered."""
    way_in = link(network.balancer, network.client, "in", "veth")
    way_out = link(network.balancer, network.backend, "out", "veth")
    address_clients(network, way_in)
    address_backends(network, way_out)
    open_tunnels(network.backend, version, encapsulation)
    address = "10.2.0.2" if version == 4 else "fd02::2"
    with network.balanced(
        way_in.near, address, encapsulation=encapsulation, gue_port=GUE_PORT
    ) as balancer:
        with Server.serving(network.backend, VIP4, VIP6) as server:
            for vip in (VIP4, VIP6):
                assert answers(network.client, vip, DATAGRAMS) == DATAGRAMS
                assert echoed(network.client, vip, OCTETS) == OCTETS
            assert len(server.datagrams) == 2 * DATAGRAMS
            assert (server.connections, server.octets) == (2, 2 * OCTETS)
        assert balancer.counters().sent > 2 * DATAGRAMS
