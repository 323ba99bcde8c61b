"""Counting: what the clients' figures rest on."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockway.lab.content import Checker, content
from sockway.lab.tally import Histogram, Outcome, Tally


@given(st.lists(st.floats(min_value=1e-5, max_value=100), min_size=1))
def test_quantile_is_exact_to_two_percent(durations: list[float]) -> None:
    """The median by the histogram is one of the durations, give or take a bucket."""
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    median = sorted(durations)[math.ceil(len(durations) / 2) - 1]
    assert histogram.quantile(0.5) == pytest.approx(median, rel=0.02)


def test_quantile_of_nothing_is_no_number() -> None:
    """Without durations there is no p99, and no zero that looks like one."""
    assert math.isnan(Histogram().quantile(0.99))


def test_tallies_survive_json_and_add_up() -> None:
    """What a client process counted is the same after its way to the parent, and adds up."""
    tally = Tally()
    tally.add(Outcome.OK, 0.05, 0.001)
    tally.add(Outcome.RESET, 0.31)
    tally.add(Outcome.MISROUTED, 0.39, began=0.12)
    tally.skipped = 3.5
    tally.note("reset: x")
    tally.answered_by["2"] += 1
    total = Tally()
    for _ in range(2):
        total.merge(Tally.from_json(json.loads(json.dumps(tally.to_json()))))
    assert (total.requests, total.failed, total.resets) == (6, 4, 2)
    ((when, count),) = total.failures_over_time().items()
    assert when == pytest.approx(0.3)
    assert count == 4
    assert total.begun[Outcome.MISROUTED] == {1: 2}
    assert total.begun[Outcome.RESET] == total.bins[Outcome.RESET] == {3: 2}
    assert total.due == 6 + 7
    assert total.answered_by == {"2": 2}
    assert total.notes == {"reset: x": 2}


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=400_000), st.integers(min_value=1000, max_value=90_000))
def test_content_is_the_same_in_any_pieces(length: int, piece: int) -> None:
    """A checker accepts the content however it is cut."""
    checker = Checker()
    for offset in range(0, length, piece):
        checker.feed(content(offset, min(piece, length - offset)))
    assert checker.intact
    assert checker.length == length


def test_a_wrong_octet_is_noticed() -> None:
    """One octet of a download that differs makes it corrupt."""
    data = bytearray(content(0, 100_000))
    data[77_777] ^= 1
    checker = Checker()
    checker.feed(bytes(data))
    assert not checker.intact
