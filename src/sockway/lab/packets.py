"""The packets that the router is measured with: 64 octets from the transport header on."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sockway.wire.host_id import HostIds

SIZE = 64
# Addresses for documentation (RFC 5737). Not loopback's: a packet that comes in from a
# device with one of those is a martian.
SOURCE, TARGET = bytes([198, 51, 100, 7]), bytes([198, 51, 100, 1])
FIRST_PORT = 10_000
ID_LENGTH = 16


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(protocol: int) -> bytes:
    """Ethernet and IPv4 headers, with room for the rest."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + SIZE, 1, 0, 64, protocol, 0) + SOURCE + TARGET
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return bytes(12) + b"\x08\x00" + head + bytes(SIZE)


def udp(source: int, target: int, payload: bytes) -> bytes:
    """A datagram without checksum, as IPv4 allows (RFC 768)."""
    return struct.pack("!HHHH", source, target, SIZE, 0) + payload.ljust(SIZE - 8, b"\0")


def syn(source: int, target: int) -> bytes:
    """A TCP SYN with an MSS option, padded with data that no listener looks at."""
    options = b"\x02\x04\x05\xb4"
    head = struct.pack("!HHIIBBHHH", source, target, source << 8, 0, 0x60, 2, 64_000, 0, 0)
    segment = (head + options).ljust(SIZE, b"\0")
    pseudo = SOURCE + TARGET + struct.pack("!BBH", 0, 6, SIZE)
    return segment[:16] + checksum(pseudo + segment).to_bytes(2, "big") + segment[18:]


Maker = Callable[[int, HostIds, int], Iterator[bytes]]


def _plain(port: int, ids: HostIds, count: int) -> Iterator[bytes]:
    del ids
    for number in range(count):
        yield udp(FIRST_PORT + number, port, os.urandom(SIZE - 8))


def _short_headers(port: int, ids: HostIds, count: int) -> Iterator[bytes]:
    """1-RTT packets of established connections: the ID is one that a worker minted."""
    for number in range(count):
        header = b"\x41" + ids.mint(1, number % 4)
        yield udp(FIRST_PORT + number, port, header + os.urandom(SIZE - 8 - len(header)))


def _initials(port: int, ids: HostIds, count: int) -> Iterator[bytes]:
    """Initial packets, heads of them: client-chosen IDs, so each goes by the flow table."""
    del ids
    for number in range(count):
        header = b"\xc3\0\0\0\x01\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0\x44\xd0"
        yield udp(FIRST_PORT + number, port, header + os.urandom(SIZE - 8 - len(header)))


def _cookies(port: int, ids: HostIds, count: int) -> Iterator[bytes]:
    for number in range(count):
        yield udp(FIRST_PORT + number, port, ids.mint(1, number % 4))


def _syns(port: int, ids: HostIds, count: int) -> Iterator[bytes]:
    del ids
    for number in range(count):
        yield syn(FIRST_PORT + number, port)


@dataclass(frozen=True)
class Case:
    """A flow mode, and the packets that it is measured with."""

    name: str
    url: str
    packets: Maker

    @property
    def protocol(self) -> int:
        """Number of the transport protocol."""
        return 6 if self.url.startswith("tcp") else 17


CASES = (
    Case("tcp (SYN)", "tcp://198.51.100.1:7001", _syns),
    Case("none", "udp://198.51.100.1:7002?flow=none", _plain),
    Case("tuple", "udp://198.51.100.1:7003?flow=tuple", _plain),
    Case("quic, 1-RTT", "udp://198.51.100.1:7004?flow=quic&ids=sockway", _short_headers),
    Case("quic, Initial", "udp://198.51.100.1:7005?flow=quic&ids=sockway", _initials),
    Case(
        "cookie",
        f"udp://198.51.100.1:7006?flow=cookie&id_offset=0&id_length={ID_LENGTH}",
        _cookies,
    ),
)
