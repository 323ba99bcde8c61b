"""The rules: who gets which ID, who may tell it, when it is free again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sockway.errors import ConfigError, NotFoundError, StateError
from sockway.fleet import NotKnownYetError, Registry, SqliteStore

START = 1_700_000_000.0
DAY = 86_400.0
VIP = "tcp://192.0.2.1:443"


class Clock:
    """A machine's clock, set by hand."""

    now = START

    def __call__(self) -> float:
        """Read it."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Stands still until it is set."""
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> Iterator[Registry]:
    """An empty one."""
    store = SqliteStore.open(tmp_path / "ids.db", create=True)
    yield Registry(store, clock)
    store.close()


def states(registry: Registry) -> dict[str, str]:
    """Of all entries."""
    return {entry.name: entry.state for entry in registry.entries()}


def test_the_same_name_has_the_same_id(registry: Registry) -> None:
    """Assigning again is no change; 0 is nobody's."""
    first = registry.assign("web1")
    assert 0 < first.server_id < 1 << 24
    assert registry.assign("web1") == first
    assert registry.assign("web1", first.server_id) == first
    assert registry.current() == first.revision == 1
    assert registry.assign("web2").server_id != first.server_id
    for name in ("", "a b", "-x", "x" * 64):
        with pytest.raises(ConfigError):
            registry.assign(name)


def test_an_id_that_was_asked_for(registry: Registry) -> None:
    """It is given if it is free, and can be."""
    assert registry.assign("web1", 17).server_id == 17
    with pytest.raises(StateError, match="17 is that of web1"):
        registry.assign("web2", 17)
    with pytest.raises(StateError, match="web1 has server ID 17 already"):
        registry.assign("web1", 18)
    for number in (0, -1, 1 << 24):
        with pytest.raises(ConfigError, match="can't be"):
            registry.assign("web2", number)
    assert states(registry) == {"web1": "assigned"}


def test_ids_that_fit_into_an_octet_are_all_given_and_then_none(registry: Registry) -> None:
    """All 255 of them, each once."""
    registry.configure(bits=8)
    given = {registry.assign(f"web{number}").server_id for number in range(255)}
    assert given == set(range(1, 256))
    with pytest.raises(StateError, match="all 255 server IDs of 8 bits") as raised:
        registry.assign("one-more")
    assert "--bits 16" in str(raised.value.hint)
    registry.configure(bits=9)
    assert 255 < registry.assign("one-more").server_id < 512


def test_ids_are_no_row(tmp_path: Path, clock: Clock) -> None:
    """Two copies of one registry give different IDs: none twice, by all odds."""
    both = []
    for name in ("a", "b"):
        store = SqliteStore.open(tmp_path / name, create=True)
        copy = Registry(store, clock)
        both.append({copy.assign(f"web{number}").server_id for number in range(50)})
        store.close()
    assert not both[0] & both[1]


def test_an_id_is_retired_drained_blocked_and_free(registry: Registry, clock: Clock) -> None:
    """Each by a revision, and each in its time."""
    registry.configure(bits=1, quarantine=7 * DAY, drain=3600)
    assert registry.assign("web1").server_id == 1
    retired = registry.retire("web1")
    assert (retired.state, retired.revision) == ("retiring", 2)
    assert registry.retire("web1") == retired
    with pytest.raises(StateError, match="in use or in quarantine"):
        registry.assign("web2")
    clock.now += 3599
    assert states(registry) == {"web1": "retiring"}
    clock.now += 1
    assert states(registry) == {"web1": "quarantined"}
    assert registry.current() == 3
    with pytest.raises(StateError, match="in use or in quarantine"):
        registry.assign("web1")  # not even who had it
    with pytest.raises(StateError, match=r"1 is quarantined: it was that of web1"):
        registry.assign("web2", 1)
    clock.now = START + 7 * DAY - 1
    assert states(registry) == {"web1": "quarantined"}
    clock.now = START + 7 * DAY
    assert registry.entries() == []
    assert registry.assign("web2").server_id == 1
    with pytest.raises(NotFoundError, match="'web1' has no server ID"):
        registry.retire("web1")


def test_a_clock_that_goes_back_frees_nothing_early(registry: Registry, clock: Clock) -> None:
    """The registry's own goes on where it was."""
    registry.configure(quarantine=100, drain=10)
    registry.assign("web1")
    clock.now = START - 50 * DAY
    registry.retire("web1")
    clock.now = START - 50 * DAY + 1000
    assert states(registry) == {"web1": "retiring"}
    clock.now = START + 9
    assert states(registry) == {"web1": "retiring"}
    clock.now = START + 10
    assert states(registry) == {"web1": "quarantined"}
    clock.now = START + 99
    assert states(registry) == {"web1": "quarantined"}
    clock.now = START + 100
    assert states(registry) == {}


def test_a_clock_that_was_ahead_is_set(registry: Registry, clock: Clock) -> None:
    """By hand, and quarantines begin anew."""
    registry.configure(quarantine=100, drain=10)
    registry.assign("web1")
    clock.now = START + 3650 * DAY
    registry.retire("web1")
    clock.now = START + 1000
    assert registry.configure(reset_clock=True).clock == clock.now
    clock.now += 10
    assert states(registry) == {"web1": "quarantined"}
    clock.now += 90
    assert states(registry) == {}


def test_a_retirement_can_be_taken_back_while_it_drains(registry: Registry, clock: Clock) -> None:
    """Balancers still know the ID; later it would be another one."""
    first = registry.assign("web1")
    registry.retire("web1")
    again = registry.assign("web1")
    assert (again.server_id, again.state, again.revision) == (first.server_id, "assigned", 3)
    registry.retire("web1")
    clock.now += DAY
    assert registry.assign("web1").server_id != first.server_id
    assert len(registry.entries()) == 2


def test_an_id_is_told_when_all_balancers_know_it(registry: Registry) -> None:
    """The error names the first that does not, and what it lacks."""
    registry.assign("web1")
    registry.report("host1/main", 1, {VIP: ("web1",)})
    registry.report("host2/main", 1, {VIP: ("web1",)})
    second = registry.assign("web2")
    registry.tell("web1", "tcp main on a")
    with pytest.raises(NotKnownYetError, match="host1/main lacks revision 2") as raised:
        registry.tell("web2", "tcp main on b")
    assert "it has 1, and 1 more lack it" in raised.value.message
    assert "forget-balancer host1/main" in str(raised.value.hint)
    registry.report("host1/main", 2, {VIP: ("web1", "web2")})
    with pytest.raises(NotKnownYetError, match="host2/main lacks revision 2"):
        registry.tell("web2", "tcp main on b", wait=0.3)
    assert registry.lacking(second) == registry.reports()[1:]
    registry.forget_balancer("host2/main")
    assert registry.tell("web2", "tcp main on b").tellers == ("tcp main on b",)
    with pytest.raises(NotFoundError, match="no balancer 'host2/main'"):
        registry.forget_balancer("host2/main")


def test_an_id_that_no_balancer_has_in_a_pool_is_not_told(registry: Registry) -> None:
    """A revision alone is no entry in a balancer's table."""
    registry.assign("web1")
    registry.report("host1/main", 1, {VIP: ("web7",)})
    with pytest.raises(
        NotKnownYetError, match="no balancer has web1 in the pool of a VIP with stamps"
    ):
        registry.tell("web1", "x")
    registry.report("host2/main", 1)  # it does not say
    registry.tell("web1", "x")


def test_nothing_is_told_before_a_balancer_reports(registry: Registry) -> None:
    """Nobody is known to know it, then."""
    registry.assign("web1")
    with pytest.raises(NotKnownYetError, match="no balancer has reported"):
        registry.tell("web1", "x")


def test_a_balancer_that_serves_the_same_vip_must_have_the_backend_too(registry: Registry) -> None:
    """It has the revision, and no entry; what serves other VIPs has nothing to do with it."""
    registry.assign("web1")
    registry.assign("web2")
    other = "udp://192.0.2.9:53"
    registry.report("host1/main", 2, {VIP: ("web1", "web2")})
    registry.report("host2/main", 2, {VIP: ("web1",), other: ("dns1",)})
    registry.tell("web1", "x")
    with pytest.raises(NotKnownYetError, match=f"host2/main serves {VIP} without web2"):
        registry.tell("web2", "x")
    registry.report("host2/main", 2, {other: ("dns1",)})
    registry.tell("web2", "x")


def test_a_balancer_that_comes_into_force_is_waited_for(registry: Registry) -> None:
    """What it read may be older than what is told meanwhile."""
    registry.assign("web1")
    registry.report("host1/main", 1, {VIP: ("web1",)})
    assert registry.announce("host2/main")
    assert not registry.announce("host2/main")
    assert not registry.announce("host1/main")
    with pytest.raises(NotKnownYetError, match="host2/main lacks revision 1"):
        registry.tell("web1", "x")
    registry.report("host2/main", 1, {VIP: ("web1",)})
    registry.tell("web1", "x")


def test_ids_written_by_hand_are_taken(registry: Registry) -> None:
    """By draw, by asking, and by adopting; the backend itself may have its own."""
    registry.configure(bits=2)
    registry.assign("web9")
    free = sorted({1, 2, 3} - {registry.entries()[0].server_id})
    registry.report("host1/main", 1, {}, by_hand={"web1": free[0]})
    with pytest.raises(StateError, match=f"{free[0]} is written for web1 in the file of balancer"):
        registry.assign("other", free[0])
    assert registry.assign("other").server_id == free[1]
    with pytest.raises(StateError, match="all 3 server IDs"):
        registry.assign("more")
    assert registry.assign("web1", free[0]).server_id == free[0]


def test_what_is_of_another_registry_is_not_reported(registry: Registry) -> None:
    """The same number says nothing."""
    registry.assign("web1")
    facts = registry.facts()
    token = registry.read(lambda view: view.token(1))
    assert token is not None
    for of in ((facts.registry, "x"), ("x", token)):
        with pytest.raises(StateError, match="is of another registry"):
            registry.report("host1/main", 1, of=of)
    assert registry.reports() == []
    registry.report("host1/main", 1, of=(facts.registry, token))


def test_adopting_takes_an_id_out_of_quarantine(registry: Registry, clock: Clock) -> None:
    """It is in force, so nobody may get it."""
    registry.assign("web1", 17)
    registry.retire("web1")
    clock.now += DAY
    assert states(registry) == {"web1": "quarantined"}
    assert [e.state for e in registry.adopt({"web1": 17})] == ["assigned"]
    clock.now += 100 * DAY
    assert states(registry) == {"web1": "assigned"}


@pytest.mark.parametrize("label", ["", "a\nb", "\udcff", "x" * 256])
def test_names_that_can_not_be_kept(registry: Registry, label: str) -> None:
    """One error, and nothing is noted."""
    registry.assign("web1")
    registry.report("lb", 1)
    with pytest.raises(ConfigError, match="is no name of what tells an ID"):
        registry.tell("web1", label)
    with pytest.raises(ConfigError, match="is no name of a balancer"):
        registry.announce(label)


def test_what_is_told_is_not_retired(registry: Registry, clock: Clock) -> None:
    """Unless it is forced; and what is retired is not told."""
    registry.assign("web1")
    registry.report("host1/main", 1)
    registry.tell("web1", "tcp main on a")
    registry.tell("web1", "quic main on a")
    with pytest.raises(StateError, match=r"web1 still stamps .*: quic main on a, tcp main on a"):
        registry.retire("web1")
    assert registry.fall_silent("web1", "tcp main on a")
    assert not registry.fall_silent("web1", "tcp main on a")
    with pytest.raises(StateError, match="still stamps"):
        registry.retire("web1")
    assert registry.retire("web1", force=True).state == "retiring"
    with pytest.raises(StateError, match="is being retired"):
        registry.tell("web1", "tcp main on a")
    clock.now += DAY
    with pytest.raises(NotFoundError, match="'web1' has no server ID"):
        registry.tell("web1", "tcp main on a")


def test_an_id_is_not_free_while_a_balancer_may_know_it(registry: Registry, clock: Clock) -> None:
    """However long ago its quarantine ended."""
    registry.assign("web1")
    registry.report("host1/main", 1, {VIP: ("web1",)})
    registry.retire("web1")
    clock.now += 100 * DAY
    assert states(registry) == {"web1": "quarantined"}
    clock.now += 100 * DAY
    assert states(registry) == {"web1": "quarantined"}
    registry.report("host1/main", registry.current(), {VIP: ()})
    assert states(registry) == {}


def test_reports_of_what_was_not(registry: Registry) -> None:
    """No balancer has what there is not yet."""
    registry.assign("web1")
    for revision in (-1, 2):
        with pytest.raises(ConfigError, match=f"no revision {revision} yet"):
            registry.report("host1/main", revision)
    with pytest.raises(ConfigError, match="no name of a balancer"):
        registry.report("a\nb", 1)
    assert registry.reports() == []


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"bits": 0}, "0 bits"),
        ({"bits": 25}, "25 bits"),
        ({"drain": -1.0}, "drain"),
        ({"quarantine": 10.0}, "do not fit"),
        ({"quarantine": float("inf")}, "has an end"),
        ({"quarantine": float("nan")}, "do not fit"),
    ],
)
def test_rules_that_can_not_be(registry: Registry, rules: dict[str, float], words: str) -> None:
    """Are refused, and change nothing."""
    before = registry.facts().rules
    with pytest.raises(ConfigError, match=words):
        registry.configure(**rules)  # type: ignore[arg-type]
    assert registry.facts().rules == before


def test_what_is_in_force_is_taken_in_whole_or_not(registry: Registry) -> None:
    """With the revision that it is of, which then counts as known."""
    registry.assign("web1", 17)
    with pytest.raises(StateError, match=r"17 is that of web1"):
        registry.adopt({"web2": 5, "web3": 17})
    assert states(registry) == {"web1": "assigned"}
    fresh = registry.adopt({"web1": 17, "web2": 5}, (40, "mark"))
    assert [(e.name, e.server_id) for e in fresh] == [("web2", 5)]
    assert registry.current() > 40
    assert fresh[0].revision == registry.current()
    assert registry.read(lambda view: view.knows(40, "mark"))
    assert registry.adopt({"web1": 17, "web2": 5}, (40, "mark")) == []
    with pytest.raises(StateError, match="web2 has server ID 6 in force, and 5 here"):
        registry.adopt({"web2": 6})
