"""Server IDs of backends that left: theirs for a time, and then nobody's."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sockway.balancer import Balancer, BalancerSpec, frame_of
from sockway.kernel import Netns
from sockway.wire.quic_lb import QuicLb, QuicLbConfig

pytestmark = pytest.mark.root

CODEC = QuicLb(QuicLbConfig(0, 3, 4))
VIP, OTHER = "192.0.2.1:443", "192.0.2.2:443"


@pytest.fixture
def balancer(netns: Netns, bpffs_root: Path) -> Iterator[Balancer]:
    """One with two backends, and nothing in force yet."""
    del bpffs_root
    with netns.entered():
        first = spec({"w1": 17, "w2": 18})
        with Balancer.open(first) as made:
            yield made
            made.remove()


def spec(
    web: dict[str, int], api: dict[str, int] | None = None, history: float = 3600
) -> BalancerSpec:
    """Pools of backends by name and ID, each with a VIP."""
    pools: dict[str, Any] = {}
    vips = []
    for pool, vip, members in (("web", VIP, web), ("api", OTHER, api)):
        if members is not None:
            backends = {
                name: {"address": f"10.0.0.{10 + at % 200}", "server_id": number}
                for at, (name, number) in enumerate(members.items())
            }
            pools[pool] = {"backends": backends}
            vips.append({"listen": f"udp://{vip}", "pool": pool, "stamps": True})
    return BalancerSpec.model_validate({
        "memory": "none", "history": history, "quic_ids": [{"rotation": 0, "nonce_length": 4}],
        "pool": pools, "vip": vips,
    })  # fmt: skip


def led(balancer: Balancer, number: int, vip: str = VIP) -> str:
    """Which backend a packet with an ID is for; there is no way to it here."""
    identifier = CODEC.encode(number.to_bytes(3, "big")) + bytes(8)
    found = balancer.explain(frame_of("udp", "198.51.100.7:40000", vip, connection_id=identifier))
    return str(found.backend)


def test_without_history_it_ends_at_once(balancer: Balancer) -> None:
    """Packets go by the ring, and are counted."""
    balancer.apply(spec({"w1": 17, "w2": 18}, history=0))
    assert led(balancer, 17) == "w1"
    balancer.apply(spec({"w2": 18}, history=0))
    assert led(balancer, 17) == "w2"
    assert led(balancer, 18) == "w2"


def test_its_time_ends_without_another_change(balancer: Balancer) -> None:
    """The agent looks each second."""
    balancer.apply(spec({"w1": 17, "w2": 18}, history=1))
    balancer.apply(spec({"w2": 18}, history=1))
    assert led(balancer, 17).startswith("w1")
    balancer.refresh()
    assert led(balancer, 17).startswith("w1")
    time.sleep(1.1)
    balancer.refresh()
    assert led(balancer, 17) == "w2"


def test_one_pool_of_two(balancer: Balancer) -> None:
    """What it has left in one does not end because it is in the other."""
    balancer.apply(spec({"w1": 17, "w2": 18}, {"w1": 17}))
    balancer.apply(spec({"w2": 18}, {"w1": 17}))
    assert led(balancer, 17).startswith("w1")
    assert led(balancer, 17, OTHER) == "w1"
    balancer.apply(spec({"w1": 17, "w2": 18}, {"w1": 17}))
    assert led(balancer, 17) == "w1"


def test_replacing_all_again_and_again(balancer: Balancer) -> None:
    """There is room for those that left, and each still leads to its own."""
    chance = random.Random(7)
    numbers: dict[str, int] = {}
    for turn in range(15):
        fresh = {f"g{turn}-{at}": chance.randrange(1, 1 << 24) for at in range(20)}
        balancer.apply(spec(fresh))
        numbers |= fresh
    for name, number in numbers.items():
        assert led(balancer, number).startswith(name)
