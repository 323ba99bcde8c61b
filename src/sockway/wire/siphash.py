"""SipHash, the keyed hash that the host's octets of a connection ID rest on.

Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012). SipHash-c-d does c rounds for
each 64-bit word of the message and d rounds at the end. Sockway uses SipHash-1-3: the BPF
programs pay for it on each packet, and what it protects (nobody may tell or forge the owner of
an ID in the seconds or hours that its connection lives) does not need more. CPython and Rust
made the same choice for their hash tables, so there are independent implementations to test
against. The BPF side is `bpf/siphash.h`.
"""

from __future__ import annotations

import struct
from typing import Final

KEY_LENGTH: Final = 16
"""Octets of a key."""

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_WORD: Final = struct.Struct("<Q")
_KEY: Final = struct.Struct("<QQ")


def key_words(key: bytes) -> tuple[int, int]:
    """The two 64-bit words, little-endian, that a key of 16 octets stands for.

    Raises:
        ValueError: the key has another length.

    """
    if len(key) != KEY_LENGTH:
        message = f"a SipHash key has {KEY_LENGTH} octets, not {len(key)}"
        raise ValueError(message)
    first, second = _KEY.unpack(key)
    return first, second


def siphash(
    key0: int, key1: int, data: bytes, *, word_rounds: int = 1, final_rounds: int = 3
) -> int:
    """SipHash of `data`, a 64-bit number.

    Args:
        key0: first eight octets of the key as a little-endian number.
        key1: the other eight.
        data: the message, of any length.
        word_rounds: c, rounds for each word of the message.
        final_rounds: d, rounds at the end.

    """
    state = (
        key0 ^ 0x736F6D6570736575,
        key1 ^ 0x646F72616E646F6D,
        key0 ^ 0x6C7967656E657261,
        key1 ^ 0x7465646279746573,
    )
    # The last word holds what is left of the message and, in its top octet, the length.
    whole = len(data) & ~7
    tail = data[whole:].ljust(7, b"\0") + bytes([len(data) & 0xFF])
    for (word,) in _WORD.iter_unpack(data[:whole] + tail):
        v0, v1, v2, v3 = state
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3 ^ word, word_rounds)
        state = (v0 ^ word, v1, v2, v3)
    v0, v1, v2, v3 = state
    v0, v1, v2, v3 = _rounds(v0, v1, v2 ^ 0xFF, v3, final_rounds)
    return v0 ^ v1 ^ v2 ^ v3


def _rounds(v0: int, v1: int, v2: int, v3: int, count: int) -> tuple[int, int, int, int]:
    """`count` SipRounds (figure 2.1 of the paper)."""
    for _ in range(count):
        v0 = (v0 + v1) & _MASK
        v2 = (v2 + v3) & _MASK
        v1 = _rotate(v1, 13) ^ v0
        v3 = _rotate(v3, 16) ^ v2
        v0 = (_rotate(v0, 32) + v3) & _MASK
        v2 = (v2 + v1) & _MASK
        v3 = _rotate(v3, 21) ^ v0
        v1 = _rotate(v1, 17) ^ v2
        v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


def _rotate(value: int, bits: int) -> int:
    """A 64-bit word rotated left."""
    return (value << bits | value >> (64 - bits)) & _MASK
