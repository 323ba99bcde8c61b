"""QUIC datagrams as a client would send them: headers true to the RFCs, payload of no meaning."""

from __future__ import annotations

import os

V1 = 0x00000001
V2 = 0x6B3343CF

INITIAL = {V1: 0, V2: 1}
ZERO_RTT = {V1: 1, V2: 2}
HANDSHAKE = {V1: 2, V2: 3}


def long_header(
    to: bytes, by: bytes = b"", *, version: int = V1, kind: dict[int, int] = INITIAL,
    size: int = 1200,
) -> bytes:  # fmt: skip
    """A datagram with one packet with a long header (RFC 9000, section 17.2)."""
    flags = 0xC0 | kind.get(version, 0) << 4 | 3
    token = b"\0" if kind is INITIAL else b""
    head = (
        bytes([flags]) + version.to_bytes(4, "big")
        + bytes([len(to)]) + to + bytes([len(by)]) + by + token
    )  # fmt: skip
    left = max(size - len(head) - 2, 20)
    return head + (0x4000 | left).to_bytes(2, "big") + os.urandom(left)


def short_header(to: bytes, size: int = 64) -> bytes:
    """A datagram with one packet with a short header (RFC 9000, section 17.3)."""
    return bytes([0x40]) + to + os.urandom(max(0, size - 1 - len(to)))
