"""Nonces of encrypted connection IDs: numbers that must not come twice under one key."""

from __future__ import annotations

import itertools
import os
import secrets
from dataclasses import dataclass
from typing import ClassVar, Final

LEAST_ENCRYPTED: Final = 7
"""Octets of a nonce where IDs are encrypted.

Processes of one server that mint under one key know nothing of each other, so only chance keeps
their numbers apart. That two ranges meet has a chance of P² · M / 256ᵒ (P processes, M IDs each, o
octets): with 10,000 processes and a million IDs each 1 in 700 in seven octets; in five they do."""


@dataclass(frozen=True)
class _Range:
    """What one process counts."""

    process: object
    start: int
    given: itertools.count[int]


class Nonces:
    """Counts from a random number on, so that no number comes twice from one process.

    A child of fork begins at a random number of its own. Threads may share it: `next` of a
    counter is one step for the interpreter.
    """

    _process: ClassVar[object] = object()
    """Stands for this process; another one in its children."""

    def __init__(self, octets: int) -> None:
        """Begin somewhere.

        Args:
            octets: of each nonce.

        """
        self._octets = octets
        self._size = 1 << 8 * octets
        self._range = self._begin()

    def take(self) -> bytes | None:
        """The next one; None if all have been given."""
        current = self._range
        if current.process is not Nonces._process:
            # If two threads of a new child get here at once, each begins somewhere: no harm.
            current = self._range = self._begin()
        number = next(current.given)
        if number >= self._size:
            return None
        return ((current.start + number) % self._size).to_bytes(self._octets, "big")

    def _begin(self) -> _Range:
        return _Range(Nonces._process, secrets.randbelow(self._size), itertools.count())

    @classmethod
    def forked(cls) -> None:
        """Know that this is another process now."""
        cls._process = object()


os.register_at_fork(after_in_child=Nonces.forked)

__all__ = ["LEAST_ENCRYPTED", "Nonces"]
