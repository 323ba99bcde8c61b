"""Maglev rings: which backend a slot of flows belongs to.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section
3.4. Each member has a preference list of all slots, given by two numbers: it begins at its offset
and goes on in steps of its skip, modulo the ring's size; the size is prime, so the list has each
slot once. Members take turns, each taking the first slot of its list that is still free, until
none is. So every member gets its share, and when one goes, the others keep nearly all they have.

Weights: in each round a member's credit grows by its weight, and it takes a slot when the credit
reaches the largest weight. A member of half the weight has every other turn, at an even pace,
so a small change of a weight moves few slots.

Offset and skip come from the member's key alone, and members are put in the order of their keys
first: two balancers that know the same members have the same ring, whatever order they learnt
of them in.

The loop is compiled (`native/maglev.c`); where the compiled library is missing, the same loop
in Python gives the same ring, some fifty times slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

RING_SIZE: Final = 65_537
"""Slots of a ring unless another size is asked for."""

NOBODY: Final = 0xFFFF
"""In a slot: no member is there to take it."""

MAX_MEMBERS: Final = NOBODY - 1
"""Members that a ring can tell apart."""

MAX_WEIGHT: Final = 65_535
"""Largest weight of a member."""

_LIBRARY: Final = Path(__file__).parent / "compiled" / "maglev.so"


@dataclass(frozen=True)
class Member:
    """One member of a ring."""

    key: bytes
    """What it is known by, on all balancers alike."""
    weight: int = 1
    """Its share in relation to others', 0 to 65,535; 0: it gets no slots."""


def build(members: Sequence[Member], size: int = RING_SIZE) -> array[int]:
    """The ring of these members.

    Args:
        members: in any order.
        size: slots, a prime number; more than a hundred for each member keeps shares within
            one per cent of the weights (section 5.3 of the paper).

    Returns:
        For each slot the index in `members`, or `NOBODY` everywhere if all weights are 0.

    Raises:
        ValueError: a size that is not prime, two members of one key, a weight out of range, or too
            many members.

    """
    _check(members, size)
    order = sorted(
        (index for index, member in enumerate(members) if member.weight),
        key=lambda index: members[index].key,
    )
    places = [permutation(members[index].key, size) for index in order]
    ring = fill(places, [members[index].weight for index in order], size)
    if order == list(range(len(order))):
        return ring
    names = array("H", order)
    return array("H", [names[slot] for slot in ring]) if order else ring


def permutation(key: bytes, size: int) -> tuple[int, int]:
    """Offset and skip of a member's preference list (the paper's two hashes).

    Both are of BLAKE2b, so they are the same on any machine and in any version.
    """
    digest = hashlib.blake2b(key, digest_size=16, person=b"sockway ring").digest()
    first, second = (int.from_bytes(digest[at : at + 8], "little") for at in (0, 8))
    return first % size, second % (size - 1) + 1


def fill(places: Sequence[tuple[int, int]], weights: Sequence[int], size: int) -> array[int]:
    """The ring of members with these offsets and skips, in the order of their turns."""
    if not places:
        return array("H", [NOBODY]) * size
    compiled = library()
    if compiled is None:
        return fill_slowly(places, weights, size)
    ring = array("H", [NOBODY]) * size
    count = len(places)
    numbers = ctypes.c_uint32 * count
    compiled.sockway_maglev(
        (ctypes.c_uint16 * size).from_buffer(ring),
        size,
        count,
        numbers(*(offset for offset, _ in places)),
        numbers(*(skip for _, skip in places)),
        numbers(*weights),
        numbers(),
        max(weights),
    )
    return ring


def fill_slowly(places: Sequence[tuple[int, int]], weights: Sequence[int], size: int) -> array[int]:
    """What `fill` gives, without the compiled library."""
    ring = array("H", [NOBODY]) * size
    following = [offset for offset, _ in places]
    credit = [0] * len(places)
    largest = max(weights)
    left = size
    while True:
        for index, (_, skip) in enumerate(places):
            credit[index] += weights[index]
            if credit[index] < largest:
                continue
            credit[index] -= largest
            slot = following[index]
            while ring[slot] != NOBODY:
                slot = (slot + skip) % size
            ring[slot] = index
            following[index] = (slot + skip) % size
            left -= 1
            if not left:
                return ring


def is_compiled() -> bool:
    """Whether rings are built by the compiled library."""
    return library() is not None


def shares(ring: Iterable[int], members: int) -> list[int]:
    """Slots of each member."""
    counts = [0] * members
    for slot in ring:
        if slot != NOBODY:
            counts[slot] += 1
    return counts


@cache
def is_prime(number: int) -> bool:
    """Whether a number is prime."""
    if number < 4:  # noqa: PLR2004 - 2 and 3 are, 0 and 1 are not
        return number > 1
    return all(number % factor for factor in (2, *range(3, int(number**0.5) + 1, 2)))


def _check(members: Sequence[Member], size: int) -> None:
    if not is_prime(size):
        message = f"a ring's size must be prime, and {size} is not"
        raise ValueError(message)
    if len(members) > min(MAX_MEMBERS, size):
        message = (
            f"a ring of {size} slots takes {min(MAX_MEMBERS, size)} members, not {len(members)}"
        )
        raise ValueError(message)
    if len({member.key for member in members}) < len(members):
        message = "two members of a ring have the same key"
        raise ValueError(message)
    for member in members:
        if not 0 <= member.weight <= MAX_WEIGHT:
            message = f"a weight is 0 to {MAX_WEIGHT}, not {member.weight}"
            raise ValueError(message)


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None where they are not there or are for another machine."""
    try:
        compiled = ctypes.CDLL(str(_LIBRARY))
        compiled.sockway_maglev.restype = None
        compiled.sockway_history.restype = None
        compiled.sockway_settle.restype = None
    except (OSError, AttributeError):
        return None
    return compiled if sys.byteorder == "little" else None


__all__ = [
    "MAX_MEMBERS",
    "MAX_WEIGHT",
    "NOBODY",
    "RING_SIZE",
    "Member",
    "build",
    "fill",
    "fill_slowly",
    "is_compiled",
    "is_prime",
    "library",
    "permutation",
    "shares",
]
