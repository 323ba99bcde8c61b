"""Sections 3 and 5: how packets look when they leave."""

from __future__ import annotations

import struct

from sockway.wire.balancer_model.configuration import ICMP, ICMPV6, UDP, Backend, Pool
from sockway.wire.balancer_model.packet import Packet

_TTL = 64
_QUOTE = 512
_LEAST_MTU = 1280
_GUE_PORTS = 0xC000
_MASK = 0xFFFFFFFF


def overhead(pool: Pool, backend: Backend) -> int:
    """Octets of the tunnel's headers."""
    return (20 if len(backend.address) == 4 else 40) + (8 if pool.gue_port is not None else 0)  # noqa: PLR2004


def tunneled(
    frame: bytes, packet: Packet, pool: Pool, backend: Backend, flow: int, *, same: bool
) -> bytes:
    """The packet in its tunnel; `flow` is the flow's hash, `same` that it leaves as it came."""
    at = packet.l3
    inner = bytearray(frame[at:])
    if packet.is_ipv4:
        inner[8] -= 1
        # The word that holds the TTL falls by 0x0100, so its complement in the sum rises.
        inner[10:12] = updated(inner[10:12], 0x0100, 0)
    else:
        inner[7] -= 1
    varied = flow >> 32
    length = packet.length + overhead(pool, backend)
    protocol = 4 if packet.is_ipv4 else 41
    if pool.gue_port is not None:
        protocol = UDP
    if len(backend.address) == 4:  # noqa: PLR2004
        kind = b"\x08\x00"
        address, mask = pool.source4
        source = (address & mask | varied & ~mask & _MASK).to_bytes(4, "little")
        outer = struct.pack(
            "!BBHHHBBH", 0x45, packet.tos, length, 0, 0x4000, _TTL, protocol, 0
        ) + source + backend.address  # fmt: skip
        outer = outer[:10] + checksum(outer) + outer[12:]
    else:
        kind = b"\x86\xdd"
        prefix, mask = pool.source6
        last = int.from_bytes(prefix[12:], "little") & mask | varied & ~mask & _MASK
        outer = struct.pack(
            "!IHBB", 6 << 28 | packet.tos << 20 | varied & 0xFFFFF, length - 40, protocol, _TTL
        ) + prefix[:12] + last.to_bytes(4, "little") + backend.address  # fmt: skip
    if pool.gue_port is not None:
        outer += struct.pack(
            "!HHHH", _GUE_PORTS | varied & 0x3FFF, pool.gue_port, packet.length + 8, 0
        )
    tags = frame[12 : at - 2] if same else b""
    return backend.next_hop + backend.own + tags + kind + outer + bytes(inner)


def echoed(frame: bytes, packet: Packet) -> bytes:
    """The reply to an echo request."""
    at, l4 = packet.l3, packet.l4
    made = bytearray(frame)
    made[0:6], made[6:12] = frame[6:12], frame[0:6]
    if packet.is_ipv4:
        made[at + 10 : at + 12] = updated(frame[at + 10 : at + 12], frame[at + 8] << 8, _TTL << 8)
        made[at + 8] = _TTL
        made[at + 12 : at + 20] = packet.address + packet.client
        before, after = 8, 0
    else:
        made[at + 7] = _TTL
        made[at + 8 : at + 40] = packet.address + packet.client
        before, after = 128, 129
    made[l4] = after
    made[l4 + 2 : l4 + 4] = updated(frame[l4 + 2 : l4 + 4], before << 8, after << 8)
    return bytes(made)


def too_big(frame: bytes, packet: Packet, mtu: int) -> bytes:
    """What tells the sender of a packet that it does not fit."""
    at = packet.l3
    quote = frame[at : at + _QUOTE]
    links = frame[6:12] + frame[0:6] + frame[12:at]
    if packet.is_ipv4:
        head = struct.pack(
            "!BBHHHBBH", 0x45, 0xC0, 28 + _QUOTE, 0, 0x4000, _TTL, ICMP, 0
        ) + packet.address + packet.client  # fmt: skip
        head = head[:10] + checksum(head) + head[12:]
        body = struct.pack("!BBHI", 3, 4, 0, mtu) + quote
        pseudo = b""
    else:
        mtu = max(mtu, _LEAST_MTU)
        addresses = packet.address + packet.client
        head = struct.pack("!IHBB", 6 << 28, 8 + _QUOTE, ICMPV6, _TTL) + addresses
        body = struct.pack("!BBHI", 2, 0, 0, mtu) + quote
        pseudo = addresses + struct.pack("!II", 8 + _QUOTE, ICMPV6)
    return links + head + body[:2] + checksum(pseudo + body) + body[4:]


def checksum(octets: bytes) -> bytes:
    """The Internet checksum (RFC 1071) of octets whose own checksum field is 0."""
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


def updated(field: bytes | bytearray, before: int, after: int) -> bytes:
    """A checksum after one of its words changed: HC' = ~(~HC + ~m + m') (RFC 1624, eqn. 3)."""
    total = (~int.from_bytes(field, "big") & 0xFFFF) + (~before & 0xFFFF) + after
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")
