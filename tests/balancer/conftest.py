"""What tests of balancers share."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from sockway.kernel import Netns
from sockway.kernel import cgroup as cgroups
from tests.balancer.middlebox import Middlebox, middlebox


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


@pytest.fixture
def cgroup(bpffs_root: Path) -> Iterator[Path]:
    """A cgroup of the test's own, with this process in it."""
    del bpffs_root
    with cgroups.temporary(f"sockway-{uuid.uuid4().hex[:8]}") as place:
        yield place


@pytest.fixture
def box() -> Iterator[Middlebox]:
    """Two hosts, and what is between them."""
    with middlebox() as made:
        yield made
