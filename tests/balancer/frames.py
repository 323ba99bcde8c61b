"""Frames to begin with, and ways to spoil them."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import cache

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from sockway.balancer.spec import QuicIdSpec
from sockway.wire.mvfst import Mvfst

VIPS4 = ("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")
VIPS6 = ("2001:db8::1", "2001:db8::2", "2001:db8::3")
CLIENTS4 = ("198.51.100.7", "10.0.0.1", "0.0.0.0", "127.0.0.1", "224.0.0.1")
CLIENTS6 = ("2001:db8:9::7", "::", "::1", "ff02::1", "fe80::1")
PORTS = (443, 80, 53, 8443)
SIZES = sorted(
    {
        mtu - headers + more
        for mtu in (1280, 1500)
        for headers in (20, 28, 40, 48)
        for more in (0, 1)
    }
    | {510, 511, 512, 513}
)
"""Packets that just fit into the tunnels of the configuration, and that just do not; and those
that are just long enough to be quoted."""
SHORTEST, LONGEST = 14, 3400
"""What BPF_PROG_TEST_RUN takes."""
_KEYS = ("fdf726a9893ec05c0632d3956680baf0", "8f95f09245765f80256934e50c66207f")
QUIC_IDS: dict[str, list[dict[str, object]]] = {
    "history": [
        {"rotation": 0, "server_id_length": 3, "nonce_length": 4, "key": _KEYS[0]},
        {"rotation": 1, "server_id_length": 3, "nonce_length": 13, "key": _KEYS[1]},
        {"rotation": 2, "server_id_length": 7, "nonce_length": 4, "key": _KEYS[0]},
        {"rotation": 3, "server_id_length": 3},
        {"rotation": 4, "server_id_length": 4, "nonce_length": 4, "key": _KEYS[0]},
        {"rotation": 5, "server_id_length": 2, "nonce_length": 17, "key": _KEYS[1]},
    ],
    "table": [
        {"rotation": 0, "server_id_length": 7},
        {"rotation": 1, "server_id_length": 3},
        {"rotation": 2, "server_id_length": 1, "nonce_length": 8},
        {"rotation": 5, "server_id_length": 4},
    ],
    "none": [
        {"layout": "mvfst-1"},
        {"layout": "mvfst-2"},
        {"layout": "mvfst-3"},
        {"rotation": 0, "server_id_length": 1, "nonce_length": 5, "key": _KEYS[1]},
        {"rotation": 1, "server_id_length": 6, "nonce_length": 4, "key": _KEYS[0]},
    ],
}
"""Configurations of connection IDs by way of memory: each shape, and each parity of its halves."""
SERVER_IDS = (5, 6, 7, 8, 9, 10, 11, 12, 13, 0xABCDEF, 15, 16, 17)
"""Of the backends, in the order of the configuration."""
_INTERESTING = (0, 1, 2, 4, 5, 6, 8, 17, 43, 44, 58, 60, 64, 69, 0x7F, 0x80, 0xC0, 0xFF)


@dataclass(frozen=True)
class Seed:
    """A frame, and where its fields are."""

    frame: bytes
    l3: int
    version: int


def _links(tags: int) -> Packet:
    ether = Ether(dst="02:00:00:00:00:aa", src="02:00:00:00:00:bb")
    if tags == 1:
        return ether / Dot1Q(vlan=7, prio=3)
    if tags == 2:
        return ether / Dot1AD(vlan=9) / Dot1Q(vlan=7)
    return ether


def _transports() -> list[Packet]:
    body = Raw(b"hello, balancer " * 4)
    made: list[Packet] = []
    for port in PORTS:
        made += [
            TCP(sport=40000, dport=port, flags="S"),
            TCP(sport=40001, dport=port, flags="A") / body,
            TCP(sport=40002, dport=port, flags="SA"),
            TCP(sport=40003, dport=port, flags="S", options=[("MSS", 1460), ("NOP", None)]),
            UDP(sport=50000, dport=port) / body,
        ]
    return made


def _connection_ids(number: int) -> list[bytes]:
    """IDs of all configurations that carry this server ID, as far as there is room."""
    made = []
    for specs in QUIC_IDS.values():
        for spec in specs:
            codec = QuicIdSpec.model_validate(spec).codec()
            if isinstance(codec, Mvfst):
                bits = codec.layout.bits
            else:
                bits = 8 * codec.config.server_id_length
            server = number & (1 << bits) - 1
            made.append(codec.encode(server.to_bytes(bits // 8, "big")))
    return [*made, bytes([0xE0]) + bytes(12), bytes([0x20]) + number.to_bytes(4, "big")]


def _stamped() -> list[Packet]:
    """TCP with server IDs in options, usual and not, and QUIC with them in connection IDs."""
    made: list[Packet] = []
    times = ("Timestamp", (1, 2))
    for number in (*SERVER_IDS, 0, 77, 0xFFFFFFFF):
        for octets in (number.to_bytes(4, "big"), number.to_bytes(4, "little")):
            for option in (
                (0xB7, octets),
                (253, b"\x12\x34" + octets),
                (253, b"\x43\x21" + octets),
            ):
                made += [
                    TCP(sport=40000, dport=443, flags="A", options=options)
                    for options in (
                        [option],
                        [("NOP", None), ("NOP", None), times, option],
                        [("MSS", 1460), times, option],
                        [("NOP", None), ("NOP", None), times, ("NOP", None), option],
                        [("SAckOK", b""), (253, b"\x43\x21" + octets), option],
                    )
                ]
        for own in _connection_ids(number):
            made += [
                UDP(sport=50000, dport=443) / Raw(b"\x40" + own + b"number, payload, tag"),
                UDP(sport=50000, dport=443) / Raw(b"\x40" + own[:6] + bytes(14)),
            ]
            for version, kind in itertools.product((b"\0\0\0\1", b"\x6b\x33\x43\xcf"), range(4)):
                long = bytes([0xC0 | kind << 4]) + version
                made.append(
                    UDP(sport=50000, dport=443) / Raw(long + bytes([len(own)]) + own + bytes(20))
                )
    return made


def _ipv4() -> list[Packet]:
    made: list[Packet] = []
    for vip in VIPS4:
        for client in CLIENTS4:
            made += [IP(src=client, dst=vip, ttl=9) / each for each in _transports()]
        client = CLIENTS4[0]
        back = IP(src=vip, dst=client) / TCP(sport=443, dport=40000, flags="A")
        back_udp = IP(src=vip, dst=client, options=b"\x01" * 4) / UDP(sport=53, dport=50000)
        made += [
            IP(src=client, dst=vip) / ICMP(type=8, seq=number) / Raw(b"ping" * number)
            for number in range(4)
        ]
        made += [
            IP(src="203.0.113.9", dst=vip) / ICMP(type=kind, code=code, nexthopmtu=1400) / quoted
            for quoted in (back, back_udp, Raw(bytes(back)[:28]))
            for kind, code in ((3, 4), (3, 1), (11, 0), (12, 0), (5, 0))
        ]
        made += [
            IP(src=client, dst=vip, flags=flags, frag=offset, id=7)
            / UDP(dport=443)
            / Raw(b"z" * 64)
            for flags, offset in (("MF", 0), ("MF", 8), (0, 16), ("DF", 0))
        ]
        options = b"\x07\x07\x04" + bytes(5)
        made += [
            IP(src=client, dst=vip, options=options) / each
            for each in (TCP(dport=443), UDP(dport=443), ICMP(type=8) / Raw(b"ping"))
        ]
        # Cut short by the IP packet's end, and not by the frame's: what follows is padding.
        made += [
            IP(src=client, dst=vip, len=20 + left) / each / Raw(bytes(18))
            for each in (ICMP(type=8), ICMP(type=3) / back, TCP(dport=443), UDP(dport=443))
            for left in (0, 7, 8, 19, 20, 31, 32)
        ]
        made += [
            IP(src=client, dst=vip, flags=flags, ttl=ttl, tos=0xB9) / TCP(dport=443) / Raw(b"b" * n)
            for flags in ("DF", 0, "evil")
            for n in (400, 1460, 2900)
            for ttl in (0, 1, 2, 64)
        ]
        made += [
            IP(src=each, dst=vip, flags="DF") / transport / Raw(b"b" * (size - 20 - len(transport)))
            for each in CLIENTS4
            for transport in (TCP(dport=443), UDP(dport=53))
            for size in SIZES
        ]
        made += [
            IP(src=each, dst=vip, flags="DF") / ICMP(type=3, code=4, nexthopmtu=1400) / back
            / Raw(b"q" * 1400)
            for each in CLIENTS4
        ]  # fmt: skip
        made += [IP(src=each, dst=vip) / ICMP(type=8) / Raw(b"ping" * 9) for each in CLIENTS4]
        # An update of the header's checksum that carries twice.
        made.append(IP(src=client, dst=vip, ttl=9, chksum=0x3600) / ICMP(type=8) / Raw(b"ping"))
    return made


def _ipv6() -> list[Packet]:
    made: list[Packet] = []
    for vip in VIPS6:
        for client in CLIENTS6:
            made += [IPv6(src=client, dst=vip, hlim=9) / each for each in _transports()]
        ip = IPv6(src=CLIENTS6[0], dst=vip, tc=0x2E, fl=0x12345)
        back = IPv6(src=vip, dst=CLIENTS6[0]) / TCP(sport=443, dport=40000, flags="A")
        tcp = TCP(sport=40009, dport=443, flags="S")
        made += [
            ip / ICMPv6EchoRequest(seq=3, data=b"ping" * 5),
            ip / ICMPv6PacketTooBig(mtu=1400) / back,
            ip / ICMPv6DestUnreach() / back,
            ip / ICMPv6TimeExceeded() / back,
            ip / ICMPv6ParamProblem() / back,
            ip / ICMPv6DestUnreach(type=0) / back,
            ip / ICMPv6EchoReply() / Raw(bytes(back)),
            ip / ICMPv6EchoRequest(cksum=0, data=b"ping"),  # an update that carries twice
            ip / IPv6ExtHdrHopByHop() / tcp,
            ip / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(addresses=[vip]) / tcp,
            ip / IPv6ExtHdrHopByHop() / ICMPv6EchoRequest(),
            ip / IPv6ExtHdrFragment(offset=0, m=1, id=5) / UDP(dport=443) / Raw(b"f" * 40),
            ip / IPv6ExtHdrFragment(offset=5, m=0, id=5) / Raw(b"f" * 40),
            ip / IPv6ExtHdrFragment(offset=0, m=0, id=5) / tcp,
            ip / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=1, id=5) / tcp,
            ip / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
            / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / tcp,
            ip / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
            / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
            / IPv6ExtHdrDestOpt() / tcp,
        ]  # fmt: skip
        made += [
            IPv6(src=CLIENTS6[0], dst=vip, plen=left) / each / Raw(bytes(18))
            for each in (ICMPv6EchoRequest(), ICMPv6DestUnreach() / back, tcp, UDP(dport=443))
            for left in (0, 7, 8, 19, 20, 51, 52)
        ]
        made += [
            IPv6(src=CLIENTS6[0], dst=vip, hlim=hops) / TCP(dport=443) / Raw(b"b" * size)
            for size in (400, 1440, 2900)
            for hops in (0, 1, 2, 64)
        ]
        made += [
            IPv6(src=each, dst=vip) / TCP(dport=443) / Raw(b"b" * (size - 60))
            for each in CLIENTS6
            for size in SIZES
        ]
        made += [ip / ICMPv6PacketTooBig(mtu=1400) / back / Raw(b"q" * 1400)]
        made += [IPv6(src=each, dst=vip) / ICMPv6EchoRequest(data=b"ping" * 9) for each in CLIENTS6]
    return made


@cache
def seeds() -> tuple[Seed, ...]:
    """Frames of all kinds that the page knows, each with no, one and two VLAN tags."""
    made = []
    chance = random.Random(1)
    stamped4 = [IP(src=CLIENTS4[0], dst=chance.choice(VIPS4[:3])) / each for each in _stamped()]
    stamped6 = [
        IPv6(src=CLIENTS6[0], dst=chance.choice(VIPS6[:2])) / each
        for each in chance.sample(_stamped(), 300)
    ]
    four, six = _ipv4() + stamped4, _ipv6() + stamped6
    for packet, version in [*((p, 4) for p in four), *((p, 6) for p in six)]:
        raw = bytes(packet)
        for tags in range(3):
            kind = 0x0800 if version == 4 else 0x86DD
            links = _links(tags)
            links.lastlayer().type = kind
            head = bytes(links)
            made.append(Seed(head + raw, len(head), version))
    made.append(
        Seed(
            bytes(Ether(dst="02:00:00:00:00:aa", src="02:00:00:00:00:bb", type=0x0806)) + bytes(46),
            14,
            4,
        )
    )
    return tuple(made)


def spoiled(chance: random.Random) -> bytes:
    """A frame of some seed, with some of it changed."""
    seed = chance.choice(seeds())
    frame = bytearray(seed.frame)
    draw = chance.random
    # Another flow: the client's port, now and then its address.
    if draw() < 0.7:
        at = seed.l3 + (20 if seed.version == 4 else 40)
        if at + 2 <= len(frame):
            frame[at + 1] = chance.randrange(256)
        if draw() < 0.2:
            frame[seed.l3 + (15 if seed.version == 4 else 23)] = chance.randrange(256)
    if draw() < 0.45:
        return bytes(frame[:LONGEST])
    for _ in range(1 + int(draw() * 3)):
        _spoil(frame, seed, chance)
    return bytes(frame[:LONGEST]).ljust(SHORTEST, b"\0")


def _spoil(frame: bytearray, seed: Seed, chance: random.Random) -> None:
    way, size = int(chance.random() * 8), len(frame)
    if not size:
        return
    # Headers are where it matters.
    at = int(chance.random() * (min(size, seed.l3 + 90) if chance.random() < 0.9 else size))
    if way < 2:
        frame[at] ^= 1 << int(chance.random() * 8)
    elif way < 4:
        frame[at] = chance.choice(_INTERESTING)
    elif way == 4:
        del frame[max(SHORTEST, int(chance.random() * size)) :]
    elif way == 5:
        frame += chance.randbytes(1 + int(chance.random() * 40))
    elif way == 6:
        _set_length(frame, seed)
    else:
        other = chance.choice(seeds()).frame
        frame[at : at + 8] = other[at : at + 8]


def _set_length(frame: bytearray, seed: Seed) -> None:
    """Have the IP length say what is there."""
    at = seed.l3 + (2 if seed.version == 4 else 4)
    length = len(frame) - seed.l3 - (0 if seed.version == 4 else 40)
    if at + 2 <= len(frame) and length >= 0:
        frame[at : at + 2] = length.to_bytes(2, "big")
