"""Rings: the paper's tables, fair shares, small changes, and two implementations of one loop."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sockway.wire.maglev import (
    NOBODY,
    RING_SIZE,
    Member,
    build,
    fill,
    fill_slowly,
    is_compiled,
    is_prime,
    permutation,
    shares,
)

PAPER = [(3, 4), (0, 2), (3, 1)]
PRIMES = [7, 53, 257, 1009]

members_of_a_ring = st.lists(
    st.tuples(st.binary(min_size=1, max_size=8), st.integers(0, 50)),
    min_size=1, max_size=7, unique_by=lambda member: member[0],
)  # fmt: skip


def _members(count: int, weight: int = 1) -> list[Member]:
    return [Member(f"backend {number}".encode(), weight) for number in range(count)]


def _moved(before: list[bytes], after: list[bytes], gone: set[bytes]) -> float:
    """Share of slots that changed though their owner is still there."""
    return sum(a != b for a, b in zip(before, after, strict=True) if a not in gone) / len(before)


def _owners(members: list[Member], size: int = RING_SIZE) -> list[bytes]:
    return [members[slot].key for slot in build(members, size)]


def test_the_papers_table() -> None:
    """Table 1: three backends, and what is left when the second goes."""
    assert list(fill(PAPER, [1, 1, 1], 7)) == [1, 0, 1, 0, 2, 2, 0]
    assert list(fill([PAPER[0], PAPER[2]], [1, 1], 7)) == [0, 0, 0, 0, 1, 1, 1]


def test_the_loop_is_compiled_here() -> None:
    """The wheel and the source tree bring the library."""
    assert is_compiled()


@settings(deadline=None)
@given(members_of_a_ring, st.sampled_from(PRIMES))
def test_both_implementations_give_the_same_ring(drawn: list[tuple[bytes, int]], size: int) -> None:
    """Whatever members, weights and sizes."""
    live = [(key, weight) for key, weight in drawn if weight]
    if live:
        places = [permutation(key, size) for key, _ in live]
        weights = [weight for _, weight in live]
        assert fill(places, weights, size) == fill_slowly(places, weights, size)


@given(members_of_a_ring, st.sampled_from(PRIMES), st.randoms(use_true_random=False))
def test_the_order_of_members_does_not_matter(
    drawn: list[tuple[bytes, int]], size: int, chance: random.Random
) -> None:
    """Two balancers that learnt of them in different orders have one ring."""
    members = [Member(*member) for member in drawn]
    other = chance.sample(members, len(members))
    ring, same = build(members, size), build(other, size)
    names = [None if s == NOBODY else members[s].key for s in ring]
    assert names == [None if s == NOBODY else other[s].key for s in same]


@given(members_of_a_ring, st.sampled_from(PRIMES))
def test_a_member_without_weight_gets_nothing(drawn: list[tuple[bytes, int]], size: int) -> None:
    """And if nobody has any, slots are nobody's."""
    members = [Member(*member) for member in drawn]
    counts = shares(build(members, size), len(members))
    assert not [m for m, count in zip(members, counts, strict=True) if count and not m.weight]
    assert sum(counts) == (size if any(member.weight for member in members) else 0)


def test_shares_are_within_one_per_cent() -> None:
    """Section 5.3: a ring of more than a hundred slots a member."""
    counts = shares(build(_members(100)), 100)
    assert max(counts) <= 1.01 * min(counts)


def test_shares_follow_weights() -> None:
    """Weights 1 to 10: each share within two per cent of its weight's."""
    members = [Member(f"backend {n}".encode(), n % 10 + 1) for n in range(50)]
    total = sum(member.weight for member in members)
    for member, count in zip(members, shares(build(members), 50), strict=True):
        assert count == pytest.approx(RING_SIZE * member.weight / total, rel=0.02)


@pytest.mark.parametrize(("gone", "most"), [(1, 0.009), (10, 0.03)])
def test_few_slots_move_when_members_go(gone: int, most: float) -> None:
    """The paper's figure: with 1,000 members, 0.6 % of others' slots for one, 2.4 % for ten."""
    members = _members(1000)
    before, after = _owners(members), _owners(members[gone:])
    moved = _moved(before, after, {member.key for member in members[:gone]})
    assert 0.001 < moved < most


def test_a_small_change_of_a_weight_moves_few_slots() -> None:
    """One of a hundred members goes from weight 100 to 90: a tenth of its slots must move."""
    members = _members(100, 100)
    lighter = [Member(members[0].key, 90), *members[1:]]
    before, after = _owners(members), _owners(lighter)
    assert sum(a != b for a, b in zip(before, after, strict=True)) / RING_SIZE < 0.02


@pytest.mark.parametrize(
    ("members", "size", "words"),
    [
        (_members(2), 65_536, "prime"),
        (_members(8), 7, "takes 7 members"),
        ([Member(b"a"), Member(b"a")], 7, "same key"),
        ([Member(b"a", -1)], 7, "weight"),
        ([Member(b"a", 65_536)], 7, "weight"),
    ],
)
def test_what_can_not_be_a_ring_is_refused(members: list[Member], size: int, words: str) -> None:
    """The error says why."""
    with pytest.raises(ValueError, match=words):
        build(members, size)


@given(st.integers(0, 5000))
def test_primes(number: int) -> None:
    """By their definition."""
    assert is_prime(number) == (number > 1 and all(number % d for d in range(2, number)))
