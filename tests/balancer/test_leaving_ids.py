"""IDs of backends that were taken out: how long they count, where, and that there is room."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sockway.balancer import Balancer, BalancerSpec, frame_of, layout
from sockway.balancer import ledger as ledgers
from sockway.balancer.idtable import IdKey, IdTable, buckets_for, buckets_that_fit
from sockway.balancer.ledger import Ledger
from sockway.errors import StateError
from tests.balancer.test_foreign_stamps import outcomes, quic, tcp

HISTORY = 600
WEB, API = 443, 444
FOREIGN = {"by_ring": 1, "foreign_stamp": 1}
CLIENTS = [f"198.51.100.{last}:{port}" for last in range(1, 9) for port in range(40000, 40050)]


def spec(web: Mapping[str, int], api: Mapping[str, int] | None = None, **more: Any) -> BalancerSpec:
    """Two pools, of names with their server IDs."""

    def pool(members: Mapping[str, int]) -> dict[str, Any]:
        return {
            "backends": {
                name: {"address": f"10.0.0.{11 + server_id % 20}", "server_id": server_id}
                for name, server_id in members.items()
            }
        }

    listens = [
        (f"{kind}://192.0.2.1:{port}", port) for kind in ("tcp", "udp") for port in (WEB, API)
    ]
    names = {WEB: "web", API: "api"}
    return BalancerSpec.model_validate({
        "memory": "none", "history": HISTORY, "secret": "the same every time",
        "stamp": {"kind": 0xB7},
        "pool": {"web": pool(web), "api": pool({"a1": 41, "a2": 42} if api is None else api)},
        "quic_ids": [
            {"rotation": 0, "nonce_length": 13, "key": "8f95f09245765f80256934e50c66207f"}
        ],
        "vip": [{"listen": on, "pool": names[port], "stamps": True} for on, port in listens],
        **more,
    })  # fmt: skip


class Clock:
    """What the ledger takes for the time."""

    def __init__(self) -> None:
        """Begin now."""
        self.now = time.time()

    def time(self) -> float:
        """As `time.time`."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands still until it is told to go on."""
    made = Clock()
    monkeypatch.setattr(ledgers, "time", SimpleNamespace(time=made.time))
    return made


@pytest.fixture
def balancer(network: None, bpffs_root: Path) -> Iterator[Balancer]:
    """With w1 and w2 in the first pool, a1 and a2 in the other."""
    del network
    first = spec({"w1": 17, "w2": 18})
    with Balancer.open(first, root=bpffs_root) as made:
        made.apply(first)
        yield made
        made.remove()


def without_stamp(balancer: Balancer, frame: bytes) -> str | None:
    """Where a packet goes that carries no ID, of the flow of `tcp` and `quic`."""
    kind = "tcp" if frame[23] == 6 else "udp"
    return balancer.explain(frame_of(kind, "198.51.100.7:40000", "192.0.2.1:443")).backend


# How long.


@pytest.mark.root
@pytest.mark.parametrize("make", [tcp, quic])
def test_without_a_history_an_id_goes_with_its_backend(balancer: Balancer, make: Any) -> None:
    """At once, not with the next change: it falls through to the ring and is counted."""
    assert outcomes(balancer, make(17)) == {"by_stamp": 1}
    balancer.apply(spec({"w2": 18}, history=0))
    assert outcomes(balancer, make(17)) == FOREIGN
    assert balancer.explain(make(17)).backend == without_stamp(balancer, make(17)) == "w2"
    assert outcomes(balancer, make(18)) == {"by_stamp": 1}
    assert not balancer._ledger.leaving


@pytest.mark.root
@pytest.mark.parametrize("make", [tcp, quic])
def test_an_id_counts_for_its_time(balancer: Balancer, clock: Clock, make: Any) -> None:
    """And no longer, which `refresh` sees to: agents call it each second."""
    balancer.apply(spec({"w2": 18}))
    clock.now += HISTORY - 1
    balancer.refresh()
    assert outcomes(balancer, make(17)) == {"by_stamp": 1}
    assert balancer.explain(make(17)).backend == "w1 (leaving)"
    clock.now += 1
    balancer.refresh()
    assert outcomes(balancer, make(17)) == FOREIGN
    assert balancer.explain(make(17)).backend == without_stamp(balancer, make(17)) == "w2"
    assert outcomes(balancer, make(18)) == {"by_stamp": 1}


@pytest.mark.root
def test_a_refresh_with_nothing_over_changes_nothing(balancer: Balancer, clock: Clock) -> None:
    """The ledger is written when something leaves, not each second."""
    balancer.apply(spec({"w2": 18}))
    before = balancer._state.settings.notes
    balancer.refresh()
    assert balancer._state.settings.notes == before
    clock.now += HISTORY
    balancer.refresh()
    after = balancer._state.settings.notes
    assert after != before
    balancer.refresh()
    assert balancer._state.settings.notes == after


@pytest.mark.root
def test_without_an_agent_the_next_apply_forgets(balancer: Balancer, clock: Clock) -> None:
    """Also one of the same configuration."""
    balancer.apply(spec({"w2": 18}))
    clock.now += HISTORY
    assert outcomes(balancer, quic(17)) == {"by_stamp": 1}  # nobody was there
    balancer.apply(spec({"w2": 18}))
    assert outcomes(balancer, quic(17)) == FOREIGN


@pytest.mark.root
def test_another_process_goes_on_from_there(
    balancer: Balancer, clock: Clock, bpffs_root: Path
) -> None:
    """What has left, and until when, is in the ledger."""
    balancer.apply(spec({"w2": 18}))
    with Balancer.existing(root=bpffs_root) as other:
        other.set_down("a1")
        assert outcomes(other, quic(17)) == {"by_stamp": 1}
        clock.now += HISTORY
        other.refresh()
    assert outcomes(balancer, quic(17)) == FOREIGN


# Where.


@pytest.mark.root
@pytest.mark.parametrize("make", [tcp, quic])
def test_a_backend_leaves_one_of_two_pools(balancer: Balancer, clock: Clock, make: Any) -> None:
    """Its ID counts there for its time, and in the other pool as ever."""
    shared = {"a1": 41, "a2": 42, "w1": 17}
    balancer.apply(spec({"w1": 17, "w2": 18}, shared))
    balancer.apply(spec({"w2": 18}, shared))
    for port in (WEB, API):
        assert outcomes(balancer, make(17, port)) == {"by_stamp": 1}
        assert balancer.explain(make(17, port)).backend == "w1"
    clock.now += HISTORY
    balancer.refresh()
    assert outcomes(balancer, make(17, WEB)) == FOREIGN
    assert outcomes(balancer, make(17, API)) == {"by_stamp": 1}


@pytest.mark.root
def test_a_backend_leaves_one_pool_after_the_other(balancer: Balancer, clock: Clock) -> None:
    """Each has its own time, the later one with a shorter history."""
    shared = {"a1": 41, "w1": 17}
    balancer.apply(spec({"w1": 17, "w2": 18}, shared))
    balancer.apply(spec({"w2": 18}, shared))
    clock.now += 100
    balancer.apply(spec({"w2": 18}, {"a1": 41}, history=50))
    assert balancer.explain(quic(17, API)).backend == "w1 (leaving)"
    clock.now += 50
    balancer.refresh()
    assert outcomes(balancer, quic(17, API)) == FOREIGN
    assert outcomes(balancer, quic(17, WEB)) == {"by_stamp": 1}
    balancer.apply(spec({"w2": 18, "w3": 19}, {"a1": 41}))  # nobody gets its number
    assert balancer.explain(quic(17, WEB)).backend == "w1 (leaving)"
    clock.now += HISTORY - 150
    balancer.refresh()
    assert outcomes(balancer, quic(17, WEB)) == FOREIGN
    assert not balancer._ledger.leaving


@pytest.mark.root
def test_an_id_that_is_given_to_another(balancer: Balancer) -> None:
    """It leads there, and in other pools to nobody."""
    shared = {"a1": 41, "w1": 17}
    balancer.apply(spec({"w1": 17, "w2": 18}, shared))
    balancer.apply(spec({"w2": 18}, {"a1": 41, "w9": 17}))
    assert balancer.explain(quic(17, API)).backend == "w9"
    assert outcomes(balancer, quic(17, WEB)) == FOREIGN


@pytest.mark.root
def test_who_comes_back_has_the_id_it_comes_with(balancer: Balancer) -> None:
    """The one before is forgotten, as if it had changed in place."""
    balancer.apply(spec({"w2": 18}))
    balancer.apply(spec({"w1": 17, "w2": 18}))
    assert balancer.explain(quic(17)).backend == "w1"
    balancer.apply(spec({"w2": 18}))
    balancer.apply(spec({"w1": 19, "w2": 18}))
    assert balancer.explain(quic(19)).backend == "w1"
    assert outcomes(balancer, quic(17)) == FOREIGN


@pytest.mark.root
def test_ids_follow_a_pool_that_moves(balancer: Balancer) -> None:
    """Another size is another place, and the place that it had leads nowhere."""
    changed = spec({"w2": 18}).model_dump()
    changed["pool"]["web"]["ring_size"] = 251
    balancer.apply(BalancerSpec.model_validate(changed))
    assert balancer._ledger.pools["web"].size == 251
    assert balancer.explain(quic(17)).backend == "w1 (leaving)"
    assert {key.pool for key in balancer._ledger.ids} == {
        place.number for place in balancer._ledger.pools.values()
    }
    assert dict(IdTable(balancer._state.ids, len(balancer._state.ids)).items()) == (
        balancer._ledger.ids
    )


# What becomes of numbers.


@pytest.mark.root
def test_who_gets_the_number_does_not_get_the_flows(balancer: Balancer, clock: Clock) -> None:
    """Slots in transition, by a later change, remember a backend whose time is over."""
    balancer.apply(spec({"w1": 17, "w2": 18}, memory="history"))
    number = balancer._ledger.backends["w1"]
    balancer.apply(spec({"w2": 18}, memory="history"))
    clock.now += HISTORY - 1
    balancer.apply(spec({"w2": 18, "w3": 19}, memory="history"))  # another `history` for the slots
    found = {balancer.explain(frame_of("tcp", each, "192.0.2.1:443")).backend for each in CLIENTS}
    assert "w1 (leaving)" in found
    clock.now += 1
    balancer.refresh()
    balancer.apply(spec({"w2": 18, "w3": 19}, {"a1": 41, "a2": 42, "a3": 43}, memory="history"))
    assert balancer._ledger.backends["a3"] == number
    found = {balancer.explain(frame_of("tcp", each, "192.0.2.1:443")).backend for each in CLIENTS}
    assert found == {"w2", "w3"}


def test_no_number_changes_hands_in_one_step() -> None:
    """Packets use the old one until all is changed; the step after may give it away."""
    before = Ledger().target(spec({"w1": 17, "w2": 18}, history=0))
    after = before.target(spec({"w2": 18, "w3": 19}, history=0))
    assert after.backends["w3"] not in before.backends.values()
    assert after.leaving == {}
    third = after.target(spec({"w2": 18, "w3": 19, "w4": 20}, history=0))
    assert third.backends["w4"] == before.backends["w1"]


def test_the_ledger_as_text() -> None:
    """What left is in it."""
    before = Ledger().target(spec({"w1": 17, "w2": 18}))
    after = before.target(spec({"w2": 18}))
    assert after.left.keys() == {"web"}
    assert after.left["web"].keys() == {17}
    assert Ledger.parse(after.dump()) == after


# That there is room.


@pytest.mark.root
def test_backends_are_replaced_over_and_over(balancer: Balancer) -> None:
    """Those that left are more than those that are there, and all of their IDs count."""
    numbers = random.Random(1).sample(range(100, 1 << 24), 16 * 20)
    for turn in range(16):
        members = {f"g{turn}-{n}": numbers[20 * turn + n] for n in range(20)}
        balancer.apply(spec(members))
    for turn in range(16):
        for n in range(20):
            found = balancer.explain(quic(numbers[20 * turn + n])).backend
            assert found == f"g{turn}-{n}" + (" (leaving)" if turn < 15 else "")


def meeting(buckets: int, count: int) -> list[int]:
    """IDs of pool 0 that all belong in the first bucket of so many."""
    shift = 32 - (buckets.bit_length() - 1)
    found = []
    for server_id in range(1, 1 << 24):
        mixed = server_id ^ server_id >> 20
        if not (mixed * 0x9E3779B1 & 0xFFFFFFFF) >> shift:
            found.append(server_id)
            if len(found) == count:
                break
    return found


@pytest.mark.root
def test_ids_that_meet_make_the_table_larger(network: None, bpffs_root: Path) -> None:
    """More than two buckets take: for a first configuration, and for a change."""
    del network
    ids = meeting(32, 40)
    with Balancer.open(spec({}), root=bpffs_root) as balancer:
        balancer.apply(spec({f"w{n}": n for n in ids[:17]}))
        first = len(balancer._state.ids)
        assert first > 32
        balancer.apply(spec({f"w{n}": n for n in ids}))
        assert len(balancer._state.ids) > first
        for n in ids:
            assert balancer.explain(quic(n)).backend == f"w{n}"
        balancer.remove()


@pytest.mark.parametrize("entries", [20, 64, 200, 1000])
def test_sizes_have_room(entries: int) -> None:
    """Random IDs of a few pools fit at once; a map that is made anew costs 0.4 s."""
    draw = random.Random(entries)
    for _ in range(20):
        buckets = buckets_for(entries)
        wanted = {IdKey(draw.randrange(4), draw.randrange(1, 1 << 24)): 1 for _ in range(entries)}
        assert buckets_that_fit(IdTable(bytearray(64 * buckets), buckets), wanted, 1) == buckets


def test_a_full_table_takes_what_replaces_its_entries() -> None:
    """What goes makes room before what comes takes it."""
    first, second = (meeting(32, 32)[part : part + 16] for part in (0, 16))
    table = IdTable(bytearray(64 * 32), 32)
    for ids in (first, second):
        wanted = {IdKey(0, server_id): 1 for server_id in ids}
        table.bring(wanted)
        assert dict(table.items()) == wanted


def test_trying_does_not_touch_what_is_held() -> None:
    """It is the kernel's memory that packets read."""
    table = IdTable(bytearray(64 * 32), 32)
    held = {IdKey(0, server_id): 7 for server_id in meeting(32, 16)}
    table.bring(held)
    wanted = {IdKey(0, server_id): 8 for server_id in meeting(32, 20)}
    assert buckets_that_fit(table, wanted, 32) > 32
    assert dict(table.items()) == held


def test_there_is_an_end_to_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the ID and what helps."""
    monkeypatch.setattr("sockway.balancer.idtable._MOST_BUCKETS", 32)
    wanted = {IdKey(0, server_id): 1 for server_id in meeting(64, 17)}
    with pytest.raises(StateError, match="no room for") as caught:
        buckets_that_fit(IdTable(bytearray(64 * 32), 32), wanted, 32)
    assert "another" in str(caught.value.hint)
    assert layout.limit("ID_WAYS") == 8
