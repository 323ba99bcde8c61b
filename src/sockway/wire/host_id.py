"""The host's octets of a connection ID: which generation and worker made it.

A QUIC server chooses the connection IDs that its clients put on their packets. When the ID
names the owner, the router needs no memory at all to bring a packet there: not across a
release, and not when the client moves to another address. So an ID made here ends in five
octets for the host:

    id    = prefix (all but the last five octets, 3 to 15) | host (five octets)
    owner = generation octet << 8 | worker                  (16 bits)
    h     = SipHash-1-3(key, prefix padded with zeros to 15 octets | length of the ID)
    host  = 40 bits, little-endian:
            low 16:  owner ^ low 16 bits of h
            high 24: the high 24 bits of h * (2 * owner + 1) mod 2^64

The mask is there for the observer: IDs of one worker look as random as all others, so they
don't link a client's paths to each other (RFC 9000, section 9.5), and nobody can count workers
or aim at one. The high 24 bits are there for the client, which chooses the ID of its first
packets itself (RFC 9000, section 7.2): such an ID must not be taken for one of ours, or it would
pin a new connection to a worker, a draining one perhaps. Without the key it passes with a
probability of 2^-24. The multiplier is odd, so for one prefix another owner gives another
product, and the check covers owner and prefix with one hash: all that a packet pays for.

The length is part of what is hashed, so an ID with octets cut off or added is not ours either.
A generation is named by its number modulo 256. That is enough: a service has far fewer live
generations than 256, and the router looks the octet up among the live ones only.

The prefix belongs to others: to the load balancer, which finds the server by it
(draft-ietf-quic-load-balancers), or to chance. It must not repeat within a worker. Without a
prefix of the caller's, `mint` takes random octets and marks the first as that draft wants it
from servers that no balancer needs to tell apart: rotation bits 0b111 ("unroutable"), then the
length of the ID less one.

The other side of this file is `bpf/host_id.h`.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from sockway.wire.siphash import KEY_LENGTH, key_words, siphash

HOST_LENGTH: Final = 5
"""Octets of an ID that are the host's."""

MIN_LENGTH: Final = 8
"""Shortest ID, in octets: the three before the host's are the least that varies enough."""

MAX_LENGTH: Final = 20
"""Longest ID, in octets (RFC 9000, section 17.2)."""

WORKERS: Final = 256
"""Workers of a generation that an ID can tell apart."""

_UNROUTABLE: Final = 0b111 << 5
_PADDED: Final = MAX_LENGTH - HOST_LENGTH
_WORD_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF


class Owner(NamedTuple):
    """Who made an ID."""

    generation_octet: int
    """Number of the generation, modulo 256."""
    worker: int
    """Index of the worker, from 0."""


class HostIds:
    """Mints and reads the IDs of one service.

    Args:
        key: 16 octets, the same in the router and in all workers of the service.
        length: octets of the IDs that are minted, 8 to 20.

    Raises:
        ValueError: a key or a length that can't be.

    """

    def __init__(self, key: bytes, length: int = 16) -> None:
        """Take the key and the length of the IDs to come."""
        if not MIN_LENGTH <= length <= MAX_LENGTH:
            message = f"an ID has {MIN_LENGTH} to {MAX_LENGTH} octets, not {length}"
            raise ValueError(message)
        self._key0, self._key1 = key_words(key)
        self._length = length

    @property
    def length(self) -> int:
        """Octets of the IDs that are minted."""
        return self._length

    @property
    def prefix_length(self) -> int:
        """Octets of the prefix that `mint` takes."""
        return self._length - HOST_LENGTH

    def mint(self, generation: int, worker: int, prefix: bytes | None = None) -> bytes:
        """Make an ID that leads to a worker.

        Args:
            generation: number of its generation, 1 or more.
            worker: its index, 0 to 255.
            prefix: what the ID starts with, `prefix_length` octets that this worker has not
                used before. Random, and marked as unroutable for balancers, if not given.

        Raises:
            ValueError: a worker or a prefix that does not fit.

        """
        if not 0 <= worker < WORKERS:
            message = f"a worker's index is 0 to {WORKERS - 1}, not {worker}"
            raise ValueError(message)
        if prefix is None:
            first = _UNROUTABLE | (self._length - 1)
            prefix = bytes([first]) + os.urandom(self.prefix_length - 1)
        elif len(prefix) != self.prefix_length:
            message = (
                f"the prefix of an ID of {self._length} octets has {self.prefix_length}, "
                f"not {len(prefix)}"
            )
            raise ValueError(message)
        owner = (generation & 0xFF) << 8 | worker
        digest = self._digest(prefix)
        host = _tag(digest, owner) << 16 | (owner ^ (digest & 0xFFFF))
        return prefix + host.to_bytes(HOST_LENGTH, "little")

    def read(self, connection_id: bytes) -> Owner | None:
        """Tell who made an ID; None if it is none of this key's.

        The length is the ID's own: 8 to 20 octets, as the router sees it in long headers.
        """
        if not MIN_LENGTH <= len(connection_id) <= MAX_LENGTH:
            return None
        prefix = connection_id[:-HOST_LENGTH]
        host = int.from_bytes(connection_id[-HOST_LENGTH:], "little")
        digest = self._digest(prefix)
        owner = (host ^ digest) & 0xFFFF
        if host >> 16 != _tag(digest, owner):
            return None
        return Owner(generation_octet=owner >> 8, worker=owner & 0xFF)

    def _digest(self, prefix: bytes) -> int:
        """The hash that masks and checks the host's octets behind a prefix."""
        length = len(prefix) + HOST_LENGTH
        return siphash(self._key0, self._key1, prefix.ljust(_PADDED, b"\0") + bytes([length]))


def _tag(digest: int, owner: int) -> int:
    """The 24 bits that bind an owner to a prefix."""
    return ((digest * (2 * owner + 1)) & _WORD_MASK) >> 40


__all__ = [
    "HOST_LENGTH",
    "KEY_LENGTH",
    "MAX_LENGTH",
    "MIN_LENGTH",
    "WORKERS",
    "HostIds",
    "Owner",
]
