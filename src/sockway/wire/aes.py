"""Round keys of AES-128 (FIPS 197), for programs that use the cipher in the kernel.

The cipher itself is the package `cryptography`'s where Python needs it; it gives no round keys.
"""

from __future__ import annotations

from functools import cache, reduce
from operator import xor
from typing import Final

KEY_OCTETS: Final = 16
ROUND_KEY_WORDS: Final = 44
_ROUND: Final = 4
_BYTE: Final = 0xFF
_POLYNOMIAL: Final = 0x11B
_UNMIX: Final = (14, 11, 13, 9)


def encryption_keys(key: bytes) -> list[int]:
    """The key schedule (section 5.2): 44 words, each a number of 32 bits.

    Raises:
        ValueError: the key has not 16 octets.

    """
    if len(key) != KEY_OCTETS:
        message = f"a key of AES-128 has {KEY_OCTETS} octets, not {len(key)}"
        raise ValueError(message)
    words = [int.from_bytes(key[at : at + 4], "big") for at in range(0, KEY_OCTETS, 4)]
    constant = 1
    for at in range(_ROUND, ROUND_KEY_WORDS):
        word = words[-1]
        if at % _ROUND == 0:
            first, *rest = (_box()[octet] for octet in word.to_bytes(4, "big"))
            word = int.from_bytes(bytes([*rest, first]), "big") ^ constant << 24
            constant = _times(constant, 2)
        words.append(words[at - _ROUND] ^ word)
    return words


def decryption_keys(key: bytes) -> list[int]:
    """The key schedule of the equivalent inverse cipher (section 5.3.5), in order of use.

    Raises:
        ValueError: the key has not 16 octets.

    """
    words = encryption_keys(key)
    rounds = [words[at : at + _ROUND] for at in range(ROUND_KEY_WORDS - _ROUND, -1, -_ROUND)]
    middle = [_unmixed(word) for each in rounds[1:-1] for word in each]
    return [*rounds[0], *middle, *rounds[-1]]


def _times(a: int, b: int) -> int:
    """Multiplication in GF(2^8), section 4.2."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = a << 1 ^ (_POLYNOMIAL if a & 0x80 else 0)
        b >>= 1
    return product


@cache
def _box() -> bytes:
    """The S-box, section 5.1.1: the inverse, and what an affine map makes of it."""
    inverse = {0: 0}
    for a in range(1, 256):
        if a not in inverse:
            b = next(b for b in range(1, 256) if _times(a, b) == 1)
            inverse[a], inverse[b] = b, a
    return bytes(
        reduce(xor, ((inverse[a] << turn | inverse[a] >> 8 - turn) & _BYTE for turn in range(5)))
        ^ 0x63
        for a in range(256)
    )


def _unmixed(word: int) -> int:
    """InvMixColumns of a column, section 5.3.3."""
    octets = word.to_bytes(4, "big")
    made = (
        reduce(xor, (_times(octets[at], _UNMIX[at - row & 3]) for at in range(4)))
        for row in range(4)
    )
    return int.from_bytes(bytes(made), "big")


__all__ = ["KEY_OCTETS", "ROUND_KEY_WORDS", "decryption_keys", "encryption_keys"]
