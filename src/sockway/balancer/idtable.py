"""The table of server IDs in the kernel's memory: (pool, ID) to backend, a word for each.

A word is written whole, so a packet finds the old entry, the new one, or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from sockway.balancer import layout
from sockway.errors import StateError

_GOLDEN = 0x9E3779B1
_WORD = 0xFFFFFFFF
_MOST_BUCKETS = 1 << 18
"""Of a table that was made larger because IDs met in it: 16 MiB."""


@dataclass(frozen=True)
class IdKey:
    """What is looked up."""

    pool: int
    """Its number."""
    server_id: int


def buckets_for(entries: int) -> int:
    """Buckets of a table with room for so many: a quarter full at most."""
    ways = layout.limit("ID_WAYS")
    return 1 << max(1, (-(-4 * entries // ways) - 1).bit_length())


def buckets_that_fit(held: IdTable, wanted: Mapping[IdKey, int], least: int) -> int:
    """How many buckets, at least so many, take what is wanted after what is held.

    Tried rather than computed, and before packets notice anything: an entry may be in two
    buckets only, and IDs can be such that more than fit there want the same two.

    Raises:
        StateError: no table of a size within reason does.

    """
    buckets = max(held.buckets, least)
    while True:
        try:
            held.resized(buckets).bring(wanted)
        except StateError:
            if buckets >= max(_MOST_BUCKETS, least):
                raise
            buckets *= 2
        else:
            return buckets


class IdTable:
    """The entries of a table."""

    def __init__(self, memory: Any, buckets: int) -> None:
        """Take the table's memory, an array of `struct id_bucket`."""
        self._words = memoryview(memory).cast("B").cast("Q")
        self.buckets = buckets
        self._ways = layout.limit("ID_WAYS")
        self._pool_shift = layout.LAYOUT.constant("id_word", "ID_POOL_SHIFT")
        self._backend_shift = layout.LAYOUT.constant("id_word", "ID_BACKEND_SHIFT")

    def resized(self, buckets: int) -> Self:
        """A table of the same entries, apart from the kernel's."""
        octets = self._words.itemsize * self._ways * buckets
        if buckets == self.buckets:
            return type(self)(bytearray(self._words.cast("B")[:octets]), buckets)
        made = type(self)(bytearray(octets), buckets)
        made.bring(dict(self.items()))
        return made

    def items(self) -> Iterator[tuple[IdKey, int]]:
        """All entries, with their backends' numbers."""
        for word in self._words[: self.buckets * self._ways]:
            if word:
                key = word & ((1 << self._backend_shift) - 1)
                server_id = key & ((1 << self._pool_shift) - 1)
                yield IdKey(key >> self._pool_shift, server_id), word >> self._backend_shift

    def bring(self, wanted: Mapping[IdKey, int]) -> None:
        """Have exactly these entries. What goes makes room first.

        Raises:
            StateError: the table is too small.

        """
        for place in range(self.buckets * self._ways):
            word = self._words[place]
            if word:
                raw = word & ((1 << self._backend_shift) - 1)
                found = IdKey(raw >> self._pool_shift, raw & ((1 << self._pool_shift) - 1))
                if found not in wanted:
                    self._words[place] = 0
        for key, backend in wanted.items():
            self._put(key, backend)

    def _put(self, key: IdKey, backend: int) -> None:
        raw = key.server_id | key.pool << self._pool_shift
        free = None
        for place in self._places(raw):
            word = self._words[place]
            if word and word & ((1 << self._backend_shift) - 1) == raw:
                free = place
                break
            if not word and free is None:
                free = place
        if free is None:
            raise StateError(
                f"the table of server IDs has no room for {key.server_id}",
                hint="too many IDs meet in it: give this backend another one",
            )
        self._words[free] = raw | backend << self._backend_shift

    def _places(self, raw: int) -> Iterator[int]:
        """Where an entry may be; as `backend_of()` in `bpf/read_stamp.h` looks for it."""
        mixed = (raw ^ raw >> 20) & _WORD
        shift = 32 - (self.buckets.bit_length() - 1)
        index = (mixed * _GOLDEN & _WORD) >> shift
        for probe in range(layout.limit("ID_PROBES")):
            bucket = (index + probe) % self.buckets
            yield from range(bucket * self._ways, (bucket + 1) * self._ways)


__all__ = ["IdKey", "IdTable", "buckets_for", "buckets_that_fit"]
