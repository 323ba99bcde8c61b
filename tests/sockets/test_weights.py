"""The weight table: shares, small moves, refusals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockway.errors import ConfigError
from sockway.sockets.weights import assign, check_weights, cpu_points, shares

SLOTS = 4096
some_weights = st.lists(st.floats(0, 1000), min_size=1, max_size=256).filter(
    lambda weights: sum(weights) > 1
)


@given(some_weights)
def test_shares_are_exact_to_a_slot(weights: list[float]) -> None:
    """Each worker gets its part of the slots, give or take one, and none is left over."""
    counts = shares(weights, SLOTS)
    total = sum(weights)
    assert sum(counts) == SLOTS
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - weight / total * SLOTS) <= 1
        assert count == 0 or weight > 0


@given(some_weights, some_weights)
def test_a_change_moves_no_more_slots_than_it_must(before: list[float], after: list[float]) -> None:
    """Slots change hands only where a worker gains or loses a share."""
    old = assign(before, SLOTS)
    new = assign(after, SLOTS, old)
    moved = sum(a != b for a, b in zip(old, new, strict=True))
    gained = sum(max(0, new.count(worker) - old.count(worker)) for worker in set(new))
    assert moved == gained


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ([1.0], "1 weights"),
        ([1.0, -1.0], "worker 1"),
        ([0.0, 0.0], "all weights"),
        ([1.0, float("nan")], "worker 1"),
        ([float("inf"), 1.0], "worker 0"),
    ],
)
def test_bad_weights_are_refused(weights: list[float], named: str) -> None:
    """What is no split of the load over two workers is refused, and the error names it."""
    with pytest.raises(ConfigError, match=named):
        check_weights(weights, 2)


@pytest.mark.parametrize("cpus", [1, 2, 3, 7, 64, 192])
@pytest.mark.parametrize("workers", [1, 2, 5, 64, 256])
def test_cpus_cover_all_workers_in_order(cpus: int, workers: int) -> None:
    """The CPUs' stretches of the line of workers leave no worker out and keep neighbours close."""
    points, width = cpu_points(cpus, 1024)

    def worker(point: int) -> int:
        return (point & 0xFFFFFFFF) * workers >> 32

    reached: set[int] = set()
    for cpu in range(cpus):
        first = worker(points[cpu])
        last = worker(points[cpu] + (0xFFFFFFFF * width >> 32))
        assert first <= last < workers
        reached.update(range(first, last + 1))
    assert reached == set(range(workers))
