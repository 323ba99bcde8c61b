"""Rings in the kernel's memory: built from a pool's members, written slot by slot.

A slot that changes keeps its previous backend, so that flows which are older than the change can
be told where they belong; see "Slot history" in ARCHITECTURE.md.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from sockway.balancer import layout
from sockway.wire import maglev

NUMBERS = 1 << 16


def pool_ring(weights: Mapping[str, int], size: int) -> tuple[array[int], list[str]]:
    """A pool's ring and the names that its slots are indices of."""
    names = sorted(weights)
    members = [maglev.Member(name.encode(), weights[name]) for name in names]
    return maglev.build(members, size), names


def write(
    slots: Any, ring: array[int], numbers: Sequence[int], counted: Sequence[int], size: int
) -> None:
    """Write a ring over the one that is there.

    Args:
        slots: the ring's place in the map `rings`, an array of 32-bit words.
        ring: for each slot an index in `numbers`.
        numbers: of the backends.
        counted: numbers of backends that flows may still belong to; others are forgotten.
        size: slots.

    """
    flags = (ctypes.c_ubyte * NUMBERS)()
    for number in counted:
        flags[number] = 1
    library = maglev.library()
    table = array("H", numbers or [0])
    if library is None:
        _write_slowly(slots, ring, table, flags, size)
        return
    library.sockway_history(
        slots,
        (ctypes.c_uint16 * size).from_buffer(ring),
        (ctypes.c_uint16 * len(table)).from_buffer(table),
        size,
        flags,
    )


def _write_slowly(
    slots: Any, ring: array[int], numbers: array[int], counted: Any, size: int
) -> None:
    """What the compiled loop does; see `native/maglev.c`."""
    for index in range(size):
        current, previous = slots[index] & 0xFFFF, slots[index] >> 16
        wanted = 0 if ring[index] == maglev.NOBODY else numbers[ring[index]]
        oldest = previous if previous and counted[previous] else 0
        if current != wanted and not oldest and counted[current]:
            oldest = current
        if slots[index] != (slot := wanted | oldest << 16):
            slots[index] = slot


def forget(slots: Any, counted: Sequence[int], size: int) -> None:
    """Have a ring that stays as it is forget previous backends that do not count any more."""
    current = array("H", [slot & 0xFFFF for slot in slots])
    write(slots, current, range(NUMBERS), counted, size)


def settle(slots: Any, size: int) -> None:
    """Have a ring forget its previous backends: the time has passed in which they counted."""
    library = maglev.library()
    if library is not None:
        library.sockway_settle(slots, size)
        return
    for index in range(size):
        if slots[index] >> 16:
            slots[index] &= 0xFFFF


def lines(slots: int) -> int:
    """Values of the map `rings` that so many slots take."""
    per_line = layout.LAYOUT.constant("ring_slot", "RING_LINE")
    return -(-slots // per_line)
