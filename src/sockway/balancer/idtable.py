"""The table of server IDs in the kernel's memory: (pool, ID) to backend, a word for each.

A word is written whole, so a packet finds the old entry, the new one, or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sockway.balancer import layout
from sockway.errors import StateError

_GOLDEN = 0x9E3779B1
_WORD = 0xFFFFFFFF


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


class IdTable:
    """The entries of a table."""

    def __init__(self, memory: Any, buckets: int) -> None:
        """Take the table's memory, an array of `struct id_bucket`."""
        self._words = memoryview(memory).cast("B").cast("Q")
        self._buckets = buckets
        self._ways = layout.limit("ID_WAYS")
        self._pool_shift = layout.LAYOUT.constant("id_word", "ID_POOL_SHIFT")
        self._backend_shift = layout.LAYOUT.constant("id_word", "ID_BACKEND_SHIFT")

    def items(self) -> Iterator[tuple[IdKey, int]]:
        """All entries, with their backends' numbers."""
        for word in self._words[: self._buckets * self._ways]:
            if word:
                key = word & ((1 << self._backend_shift) - 1)
                server_id = key & ((1 << self._pool_shift) - 1)
                yield IdKey(key >> self._pool_shift, server_id), word >> self._backend_shift

    def bring(self, wanted: Mapping[IdKey, int]) -> None:
        """Have exactly these entries.

        Raises:
            StateError: the table is too small.

        """
        for key, backend in wanted.items():
            self._put(key, backend)
        for place in range(self._buckets * self._ways):
            word = self._words[place]
            if word:
                raw = word & ((1 << self._backend_shift) - 1)
                found = IdKey(raw >> self._pool_shift, raw & ((1 << self._pool_shift) - 1))
                if wanted.get(found) != word >> self._backend_shift:
                    self._words[place] = 0

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
            raise StateError("the table of server IDs has no room", hint="apply it again")
        self._words[free] = raw | backend << self._backend_shift

    def _places(self, raw: int) -> Iterator[int]:
        """Where an entry may be; as `backend_of()` in `bpf/read_stamp.h` looks for it."""
        mixed = (raw ^ raw >> 20) & _WORD
        shift = 32 - (self._buckets.bit_length() - 1)
        index = (mixed * _GOLDEN & _WORD) >> shift
        for probe in range(layout.limit("ID_PROBES")):
            bucket = (index + probe) % self._buckets
            yield from range(bucket * self._ways, (bucket + 1) * self._ways)


__all__ = ["IdKey", "IdTable", "buckets_for"]
