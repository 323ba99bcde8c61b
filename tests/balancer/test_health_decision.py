"""Thresholds, and failing open: what results come to."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sockway.balancer.health.decision import PoolHealth, taken_out

NAMES = ["a", "b", "c", "d", "e"]
RESULTS = st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=200)


def pool(rise: int = 2, fall: int = 3, max_down: float = 1.0) -> PoolHealth:
    """Five backends."""
    made = PoolHealth(rise, fall, max_down)
    made.keep(NAMES)
    return made


def out_of(health: PoolHealth) -> list[str]:
    """Who is out, were this the only pool."""
    return list(taken_out([health]))


def test_it_takes_so_many_failures_in_a_row() -> None:
    """A success in between begins anew."""
    health = pool()
    for result in (None, "no", "no", None, "no", "no"):
        health.add("a", result, 0.1)
        assert not out_of(health)
    assert health.add("a", "no", 0.1)
    assert out_of(health) == ["a"]
    assert health.judgements["a"].reason == "no"


def test_and_so_many_successes_to_come_back() -> None:
    """But the first success of one never seen is enough."""
    health = pool()
    assert health.add("b", None, 0.1)
    for _ in range(3):
        health.add("b", "no", 0.1)
    assert out_of(health) == ["b"]
    assert not health.add("b", None, 0.1)
    assert out_of(health) == ["b"]
    assert health.add("b", None, 0.1)
    assert not out_of(health)


def test_one_that_was_out_before_has_to_rise() -> None:
    """A new agent does not let it in at its first success."""
    health = PoolHealth(2, 3, 1.0)
    health.keep(NAMES, failing=["c"])
    assert out_of(health) == ["c"]
    health.add("c", None, 0.1)
    assert out_of(health) == ["c"]
    health.add("c", None, 0.1)
    assert not out_of(health)


def test_who_leaves_the_pool_is_forgotten() -> None:
    """And a late result of it changes nothing."""
    health = pool(fall=1)
    health.add("a", "no", 0.1)
    health.keep(NAMES[1:])
    assert not out_of(health)
    assert not health.add("a", "no", 0.1)


def test_the_first_that_fell_are_out_and_the_rest_is_kept() -> None:
    """Two of five at half."""
    health = pool(fall=1, max_down=0.5)
    for name in ("d", "b", "a"):
        health.add(name, "no", 0.1)
    assert health.down == ["d", "b", "a"]
    assert out_of(health) == ["d", "b"]
    for _ in range(2):
        health.add("d", None, 0.1)
    assert out_of(health) == ["b", "a"]


@settings(deadline=None)
@given(RESULTS, st.integers(1, 4), st.integers(1, 4), st.floats(0, 1))
def test_never_more_than_the_share(
    results: list[tuple[str, bool]], rise: int, fall: int, share: float
) -> None:
    """Whatever happens; and who is out has failed `fall` times since it last was up."""
    health = pool(rise, fall, share)
    history: dict[str, list[bool]] = {name: [] for name in NAMES}
    for name, good in results:
        health.add(name, None if good else "no", 0.0)
        history[name].append(good)
        assert len(out_of(health)) <= share * len(NAMES) + 1e-6
        assert set(out_of(health)) <= set(health.down)
        for down in health.down:
            tail = history[down]
            assert any(not any(tail[at : at + fall]) for at in range(len(tail) - fall + 1))


def test_who_is_drained_is_no_reserve() -> None:
    """Two of five serve: one of them may be out, and those that are drained besides."""
    health = pool(fall=1, max_down=0.5)
    health.keep(NAMES, idle=["c", "d", "e"])
    for name in ("a", "c", "b", "d"):
        health.add(name, "no", 0.1)
    assert out_of(health) == ["a", "c", "d"]
    # Nobody serves: all count.
    health.keep(NAMES, idle=NAMES)
    assert out_of(health) == ["a", "c"]


def test_a_machine_is_not_taken_from_a_pool_that_cannot_bear_it() -> None:
    """It fails in one pool, and is all that another has."""
    one, other = pool(fall=1, max_down=0.5), PoolHealth(2, 1, 0.5)
    other.keep(["a"])
    for name in ("a", "b", "c"):
        one.add(name, "no", 0.1)
    assert list(taken_out([one, other])) == ["b", "c"]
    other.keep(["a", "x"])
    assert taken_out([one, other]) == {"a": [one], "b": [one]}
    other.add("a", "no", 0.1)
    assert taken_out([one, other])["a"] == [one, other]


SOME = st.sets(st.sampled_from(NAMES), min_size=1)


@settings(deadline=None)
@given(st.lists(st.tuples(SOME, SOME, SOME, st.floats(0, 1)), min_size=1, max_size=4))
def test_no_pool_loses_more_than_its_share(
    pools: list[tuple[set[str], set[str], set[str], float]],
) -> None:
    """Whatever pools have in common; and nobody is kept whom all could bear to lose."""
    made = []
    for members, failing, idle, share in pools:
        health = PoolHealth(1, 1, share)
        health.keep(members, idle=idle)
        for name in failing:
            health.add(name, "no", 0.0)
        made.append(health)
    out = taken_out(made)
    for health in made:
        assert len(out.keys() & health.serving) <= health.bearable
    for name, by in out.items():
        assert by
        assert all(name in health.down for health in by)
    for name in {name for health in made for name in health.down} - out.keys():
        assert any(
            name in health.serving and len(out.keys() & health.serving) == health.bearable
            for health in made
        )


@settings(deadline=None)
@given(RESULTS)
def test_a_success_streak_is_up_whatever_was_before(results: list[tuple[str, bool]]) -> None:
    """`rise` successes bring back anybody."""
    health = pool(rise=3)
    for name, good in results:
        health.add(name, None if good else "no", 0.0)
    for _ in range(3):
        health.add("a", None, 0.0)
    assert health.judgements["a"].up
    assert "a" not in health.down
