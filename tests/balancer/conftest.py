"""What tests of balancers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute

from sockway.kernel import Netns


@pytest.fixture
def network(netns: Netns) -> Iterator[None]:
    """An interface with neighbours that are known."""
    with netns.entered():
        with IPRoute() as route:
            route.link("add", ifname="out0", kind="veth", peer="peer0")
            out, peer = (route.link_lookup(ifname=name)[0] for name in ("out0", "peer0"))
            for index in (out, peer):
                route.link("set", index=index, state="up")
            route.addr("add", index=out, address="10.0.0.1", prefixlen=24)
            for last in range(11, 31):
                route.neigh(
                    "add", dst=f"10.0.0.{last}", lladdr=f"02:00:00:00:00:{last:02x}",
                    ifindex=out, state=128,
                )  # fmt: skip
        yield
