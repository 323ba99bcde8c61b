"""What the balancer costs: ns a packet, by kind of packet, number of flows and way of memory.

A wrapper program (`bpf/repeat.bpf.c`) restores the packet before each repetition and tail-calls
the balancer, or an empty program; all figures are net of the empty one, which is measured before
and after each in the same run.
"""

from __future__ import annotations

import statistics
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from sockway.balancer.spec import QuicIdSpec
from sockway.errors import StateError
from sockway.kernel import BpfObject
from sockway.kernel.layout import ObjectLayout
from sockway.lab.bare_balancer import Setup
from sockway.lab.packets import checksum

_XDP_PASS, _XDP_TX = 2, 3
_LINK: Final = bytes.fromhex("020000000001 020000000009")
_PAYLOAD: Final = b"x" * 58
SOURCE4, SOURCE6 = 26, 34
"""Where a source address (of IPv6: its end) is in a frame."""
_SYN, _ACK = 0x02, 0x10


@dataclass(frozen=True)
class Kind:
    """A kind of packet."""

    name: str
    frame: bytes
    varied: int
    """Where in it the 32 bits are that tell flows apart."""
    verdict: int = _XDP_TX


def ipv4(protocol: int, body: bytes, *, source: str = "10.9.0.0", target: str = "192.0.2.1",
         ttl: int = 60) -> bytes:  # fmt: skip
    """An IPv4 packet."""
    addresses = IPv4Address(source).packed + IPv4Address(target).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, ttl, protocol, 0) + addresses
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def ipv6(protocol: int, body: bytes) -> bytes:
    """An IPv6 packet from a client to the VIP."""
    addresses = IPv6Address("2001:db8:9::").packed + IPv6Address("2001:db8::1").packed
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 60) + addresses + body


def tcp(
    flags: int, *, source: int = 40_000, target: int = 443, options: bytes = b"",
    payload: bytes = b"",
) -> bytes:  # fmt: skip
    """A TCP segment; the balancer looks at no checksum of it."""
    options += bytes(-len(options) % 4)
    offset = (20 + len(options)) // 4 << 4
    head = struct.pack("!HHIIBBHHH", source, target, 1, 0, offset, flags, 8192, 0, 0)
    return head + options + payload


def udp(*, source: int = 40_000, target: int = 443, payload: bytes = b"") -> bytes:
    """A UDP datagram without checksum."""
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def icmp(kind: int, code: int, body: bytes) -> bytes:
    """An ICMP message."""
    message = struct.pack("!BBHI", kind, code, 0, 0) + body
    padded = message + bytes(len(message) % 2)
    return message[:2] + checksum(padded).to_bytes(2, "big") + message[4:]


def on_wire(packet: bytes) -> bytes:
    """With an Ethernet header."""
    return _LINK + (b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00") + packet  # noqa: PLR2004


_QUOTED = ipv4(6, tcp(_SYN, source=443, target=40_000), source="192.0.2.1", target="10.9.0.0")
KINDS: Final = (
    Kind("TCP", on_wire(ipv4(6, tcp(_ACK, payload=_PAYLOAD))), SOURCE4),
    Kind("SYN", on_wire(ipv4(6, tcp(_SYN, payload=_PAYLOAD))), SOURCE4),
    Kind("UDP", on_wire(ipv4(17, udp(payload=_PAYLOAD))), SOURCE4),
    Kind(
        "no VIP's",
        on_wire(ipv4(6, tcp(_SYN, source=20, payload=_PAYLOAD), target="192.0.2.9")),
        SOURCE4,
        _XDP_PASS,
    ),
    Kind("TCP over IPv6", on_wire(ipv6(6, tcp(_ACK, payload=_PAYLOAD))), SOURCE6),
    Kind("ICMP error", on_wire(ipv4(1, icmp(3, 1, _QUOTED + _PAYLOAD))), 58),
    Kind("echo", on_wire(ipv4(1, icmp(8, 0, _PAYLOAD))), SOURCE4),
)


QUIC_IDS: Final = {
    "QUIC, ID in clear": QuicIdSpec(rotation=0, server_id_length=3, nonce_length=8),
    "QUIC, one block of AES": QuicIdSpec(rotation=1, nonce_length=13, key="5a" * 16),
    "QUIC, three blocks of AES": QuicIdSpec(rotation=2, nonce_length=6, key="a5" * 16),
}
_SERVER_ID: Final = 77
_TIMESTAMPS: Final = bytes([1, 1, 8, 10]) + struct.pack("!II", 1, 2)
_STAMP: Final = bytes([0xB7, 6]) + _SERVER_ID.to_bytes(4, "big")


def carrying() -> list[Kind]:
    """Packets by how they carry their server's ID, or that they don't; for `load(quic_ids=...)`."""

    def segment(options: bytes) -> bytes:
        return on_wire(ipv4(6, tcp(_ACK, options=options, payload=_PAYLOAD)))

    def datagram(own: bytes) -> bytes:
        return on_wire(ipv4(17, udp(payload=b"\x40" + own + _PAYLOAD)))

    kinds = [
        Kind("TCP", segment(_TIMESTAMPS), SOURCE4),
        Kind("TCP, stamped", segment(_TIMESTAMPS + _STAMP), SOURCE4),
        Kind("QUIC, no ID", datagram(b"\xff"), SOURCE4),
    ]
    for name, spec in QUIC_IDS.items():
        own = spec.codec().encode(_SERVER_ID.to_bytes(3, "big"))
        kinds.append(Kind(name, datagram(own), SOURCE4))
    return kinds


class Harness:
    """The wrapper, and what it calls."""

    def __init__(self) -> None:
        """Load it."""
        self.object = BpfObject.open(ObjectLayout("repeat").source, name="repeat")
        self.object.load()
        self.tasks = self.object.map("tasks")
        self.task = self.tasks.mmap(self.object.types.struct("task"))
        self.programs = self.object.map("programs")
        self.empty, self.repeat = self.object.program("empty"), self.object.program("repeat")
        self.programs[0] = self.empty.fd

    def aim(self, setup: Setup, kind: Kind, flows: int) -> bytes:
        """Set up the packets; the frame for the run.

        Raises:
            StateError: the balancer does with such a packet what it should not.

        """
        frame = kind.frame
        self.task.length, self.task.varied, self.task.flows = len(frame), kind.varied, flows - 1
        words = self.object.types.struct("frame").from_buffer_copy(frame[:96])
        self.task.frame = words
        self.measured = setup.object.program("balancer")
        self.programs[1] = self.measured.fd
        with setup.object.program("explain") as explain:
            verdict = explain.test_run(frame).retval
        if verdict != kind.verdict:
            raise StateError(f"{kind.name}: verdict {verdict}, not {kind.verdict}")
        return frame

    def time(self, frame: bytes, program: int, count: int) -> float:
        """Mean ns of a repetition."""
        self.task.program = program
        return float(self.repeat.test_run(frame, repeat=count).duration)


def samples(  # noqa: PLR0917
    harness: Harness, setup: Setup, kind: Kind, flows: int, rounds: int, count: int
) -> list[float]:
    """Ns a packet, net of the empty program, of each round."""
    frame = harness.aim(setup, kind, flows)
    harness.time(frame, 1, max(count, min(flows, 1 << 20)))  # so that tables are filled
    found = []
    before = harness.time(frame, 0, count)
    for _ in range(rounds):
        full = harness.time(frame, 1, count)
        after = harness.time(frame, 0, count)
        found.append(full - (before + after) / 2)
        before = after
    return found


def measure(  # noqa: PLR0917
    harness: Harness, setup: Setup, kind: Kind, flows: int, rounds: int, count: int
) -> tuple[float, float]:
    """Median and interquartile range of those."""
    found = samples(harness, setup, kind, flows, rounds, count)
    low, _, high = statistics.quantiles(found, n=4)
    return statistics.median(found), high - low


def transition(setup: Setup) -> None:
    """Every slot has a previous backend."""
    ring = setup.memory("rings", None, setup.ring_size)
    ring[:] = [value | (value % 100 + 1) << 16 for value in ring]


__all__ = [
    "KINDS", "QUIC_IDS", "SOURCE4", "Harness", "Kind", "carrying", "ipv4", "measure",
    "on_wire", "samples", "tcp", "transition",
]  # fmt: skip
