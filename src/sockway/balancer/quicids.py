"""QUIC connection IDs that name their server, as the program reads them (`struct quic_ids`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sockway.balancer import layout
from sockway.balancer.spec import QuicIdSpec
from sockway.wire.aes import decryption_keys, encryption_keys
from sockway.wire.mvfst import LAYOUTS
from sockway.wire.quic_lb import LEAST_NONCE

STARTS = 8
"""What the first three bits of an ID can be."""
_WORD = 64
_HALF = 10
_ROUNDS = 4


def write(memory: Any, specs: Iterable[QuicIdSpec]) -> None:
    """Have these configurations, and no others; those that stay the same are not touched.

    Args:
        memory: an array of eight `struct quic_ids`, which packets read meanwhile.
        specs: no two have a start in common.

    """
    wanted = {start: entry_of(spec) for spec in specs for start in spec.starts}
    for start in range(STARTS):
        entry = wanted.get(start, layout.record("quic_ids")())
        held = memory[start]
        if bytes(held) != bytes(entry):
            held.shape = 0  # no packet is to read it half written
            shape, entry.shape = entry.shape, 0
            memory[start] = entry
            memory[start].shape = shape


def entry_of(spec: QuicIdSpec) -> Any:
    """One configuration."""
    entry = layout.record("quic_ids")()
    if spec.layout != "quic-lb":
        skip, bits = LAYOUTS[int(spec.layout[-1])].skip, LAYOUTS[int(spec.layout[-1])].bits
        return _clear(entry, skip, bits)
    octets = spec.server_id_length
    together = octets + (spec.nonce_length or LEAST_NONCE)
    if spec.key is None:
        _clear(entry, 8, 8 * octets)
        entry.least = 1 + together
        return entry
    key = bytes.fromhex(spec.key)
    entry.together, entry.least = together, 1 + together
    entry.drop = _WORD - 8 * octets
    if spec.blocks == 1:
        entry.shape = layout.flag("quic_shape", "QUIC_BLOCK")
        entry.key[:] = decryption_keys(key)
        return entry
    entry.shape = layout.flag("quic_shape", "QUIC_ROUNDS")
    entry.key[:] = encryption_keys(key)
    half, odd = (together + 1) // 2, together % 2
    left, right = bytearray(b"\xff" * half), bytearray(b"\xff" * half)
    if odd:
        left[-1], right[0] = 0xF0, 0x0F
    entry.left[:], entry.right[:] = _masks(left), _masks(right)
    entry.right_at = together // 2
    entry.over_the_middle = spec.blocks == _ROUNDS
    return entry


def _clear(entry: Any, skip: int, bits: int) -> Any:
    entry.shape = layout.flag("quic_shape", "QUIC_CLEAR")
    entry.skip, entry.drop = skip, _WORD - bits
    entry.least = -(-(skip + bits) // 8)
    return entry


def _masks(octets: bytes | bytearray) -> tuple[int, int]:
    """Of eight octets, and of two more that stand at the top of a word."""
    whole = int.from_bytes(octets.ljust(_HALF, b"\0"), "big")
    return whole >> 16, (whole & 0xFFFF) << 48


__all__ = ["STARTS", "entry_of", "write"]
