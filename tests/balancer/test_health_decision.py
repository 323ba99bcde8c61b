"""Thresholds, and failing open: what results come to."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sockway.balancer.health.decision import PoolHealth

NAMES = ["a", "b", "c", "d", "e"]
RESULTS = st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=200)


def pool(rise: int = 2, fall: int = 3, max_down: float = 1.0) -> PoolHealth:
    """Five backends."""
    made = PoolHealth(rise, fall, max_down)
    made.keep(NAMES)
    return made


def test_it_takes_so_many_failures_in_a_row() -> None:
    """A success in between begins anew."""
    health = pool()
    for result in (None, "no", "no", None, "no", "no"):
        health.add("a", result, 0.1)
        assert not health.out
    assert health.add("a", "no", 0.1)
    assert health.out == ["a"]
    assert health.judgements["a"].reason == "no"


def test_and_so_many_successes_to_come_back() -> None:
    """But the first success of one never seen is enough."""
    health = pool()
    assert health.add("b", None, 0.1)
    for _ in range(3):
        health.add("b", "no", 0.1)
    assert health.out == ["b"]
    assert not health.add("b", None, 0.1)
    assert health.out == ["b"]
    assert health.add("b", None, 0.1)
    assert not health.out


def test_one_that_was_out_before_has_to_rise() -> None:
    """A new agent does not let it in at its first success."""
    health = PoolHealth(2, 3, 1.0)
    health.keep(NAMES, failing=["c"])
    assert health.out == ["c"]
    health.add("c", None, 0.1)
    assert health.out == ["c"]
    health.add("c", None, 0.1)
    assert not health.out


def test_who_leaves_the_pool_is_forgotten() -> None:
    """And a late result of it changes nothing."""
    health = pool(fall=1)
    health.add("a", "no", 0.1)
    health.keep(NAMES[1:])
    assert not health.out
    assert not health.add("a", "no", 0.1)


def test_the_first_that_fell_are_out_and_the_rest_is_kept() -> None:
    """Two of five at half."""
    health = pool(fall=1, max_down=0.5)
    for name in ("d", "b", "a"):
        health.add(name, "no", 0.1)
    assert health.down == ["d", "b", "a"]
    assert health.out == ["d", "b"]
    for _ in range(2):
        health.add("d", None, 0.1)
    assert health.out == ["b", "a"]


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
        assert len(health.out) <= share * len(NAMES) + 1e-6
        assert set(health.out) <= set(health.down)
        for down in health.down:
            tail = history[down]
            assert any(not any(tail[at : at + fall]) for at in range(len(tail) - fall + 1))


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
