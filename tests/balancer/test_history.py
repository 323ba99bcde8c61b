"""What a slot remembers while backends come and go, asked of the program in force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sockway.balancer import Balancer, BalancerSpec, frame_of
from sockway.balancer.apply import tick
from sockway.kernel import Netns

pytestmark = pytest.mark.root

VIP = "192.0.2.1:443"
CLIENTS = [f"198.51.100.{last}:{port}" for last in range(1, 9) for port in range(40000, 40050)]


def spec(*backends: str, **more: object) -> BalancerSpec:
    """A pool of these."""
    members = {name: {"address": f"10.0.0.{10 + ord(name) - ord('a')}"} for name in backends}
    return BalancerSpec.model_validate(
        {
            "secret": "the same every time",
            "pool": {"web": {"backends": members}},
            "vip": [{"listen": f"tcp://{VIP}", "pool": "web"}],
            **more,
        }
    )


@pytest.fixture
def balancer(netns: Netns, bpffs_root: Path) -> Iterator[Balancer]:
    """With nothing applied."""
    with netns.entered(), Balancer.open(spec(), root=bpffs_root) as made:
        yield made
        made.remove()


def backends(balancer: Balancer) -> dict[str, str]:
    """Where packets of known flows would go, by client."""
    found = {c: balancer.explain(frame_of("tcp", c, VIP)).backend for c in CLIENTS}
    return {client: (name or "").removesuffix(" (leaving)") for client, name in found.items()}


def open_flow(balancer: Balancer, client: str) -> None:
    """A first packet, for real: nobody has a way to the backend, but it is remembered."""
    with balancer._state.program("balancer") as program:
        program.test_run(frame_of("tcp", client, VIP, "syn"))


def test_old_flows_stay_through_any_number_of_changes(balancer: Balancer) -> None:
    """Their slots keep the oldest backend."""
    balancer.apply(spec("a", "b", "c"))
    before = backends(balancer)
    for members in ("bc", "bcd", "cde", "abc", "abcde", "ae"):
        balancer.apply(spec(*members))
        assert backends(balancer) == before


def test_new_flows_of_a_slot_that_goes_there_and_back(balancer: Balancer) -> None:
    """A slot with its first backend again: flows of the one in between are known still."""
    balancer.apply(spec("a", "b"))
    before = backends(balancer)
    balancer.apply(spec("a", "b", "c"))
    opened = {}
    for client in CLIENTS:
        found = balancer.explain(frame_of("tcp", client, VIP, "syn"))
        if found.backend == "c" and found.in_transition:
            open_flow(balancer, client)
            opened[client] = "c"
    assert len(opened) > len(CLIENTS) // 10
    balancer.apply(spec("a", "b"))  # c's slots go back; c is leaving, and keeps its flows
    after = backends(balancer)
    assert {client: after[client] for client in opened} == opened
    assert all(after[c] == before[c] for c in CLIENTS if c not in opened)


def test_when_the_time_is_over_nothing_of_it_counts(balancer: Balancer) -> None:
    """Flows that were opened since belong to the current backends, through the next change too."""
    balancer.apply(spec("a", "b", history=5))
    balancer.apply(spec("b", "c", history=5))
    state, place = balancer._state, balancer._ledger.pools["web"]
    state.pools[place.number].history_until = max(0, tick() - 1)
    settled = backends(balancer)
    assert "a" not in settled.values()
    balancer.apply(spec("b", "c", "d", history=5))
    assert backends(balancer) == settled


def test_a_backend_that_is_down_keeps_nothing(balancer: Balancer) -> None:
    """Neither its slots nor what slots remember of it; and it comes back to all of it."""
    balancer.apply(spec("a", "b", "c"))
    before = backends(balancer)
    balancer.set_down("a")
    moved = backends(balancer)
    assert "a" not in moved.values()
    assert all(moved[c] == before[c] for c in CLIENTS if before[c] != "a")
    balancer.restore("a")
    assert backends(balancer)[next(c for c in CLIENTS if before[c] == "b")] == "b"


def test_without_memory_the_ring_alone_counts(balancer: Balancer) -> None:
    """As many flows move as slots do."""
    balancer.apply(spec("a", "b", "c", memory="none"))
    before = backends(balancer)
    balancer.apply(spec("b", "c", memory="none"))
    after = backends(balancer)
    moved = sum(1 for c in CLIENTS if before[c] != after[c])
    gone = sum(1 for c in CLIENTS if before[c] == "a")
    assert gone <= moved < gone + len(CLIENTS) // 5
