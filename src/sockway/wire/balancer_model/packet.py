"""Section 1: what a frame is, and where its headers are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from sockway.wire.balancer_model.configuration import ICMP, ICMPV6, TCP, UDP

_ETHERNET = 14
_IPV4 = b"\x08\x00"
_IPV6 = b"\x86\xdd"
_TAGS = (b"\x81\x00", b"\x88\xa8")
_FRAGMENT_HEADER = 44
_EXTENSIONS = (0, 43, 44, 60)
_MOST_EXTENSIONS = 6
_SYN, _ACK = 0x02, 0x10


class Kind(IntEnum):
    """What reading came to."""

    FLOW = 0
    FRAGMENT = 1
    ICMP = 2
    OTHER = 3
    MALFORMED = 4


@dataclass(slots=True)
class Packet:
    """A packet as the balancer sees it."""

    client: bytes
    """The flow's addresses and ports, towards the VIP."""
    address: bytes
    l3: int
    """Where the IP header is in the frame, and what follows it and its extensions."""
    l4: int
    length: int
    """Octets of IP."""
    protocol: int
    tos: int
    ttl: int
    dont_fragment: bool
    plain: bool
    """No options, no extension headers."""
    client_port: int = 0
    port: int = 0
    opens: bool = False
    quoting: bool = False

    @property
    def is_ipv4(self) -> bool:
        """Which family the packet itself is of."""
        return len(self.client) == 4  # noqa: PLR2004


def parse(frame: bytes) -> tuple[Kind, Packet | None]:
    """Read a frame; the packet is None for what is passed unseen."""
    if len(frame) < _ETHERNET:
        return Kind.OTHER, None
    at, kind = _ETHERNET, frame[12:14]
    for _ in range(2):
        if kind not in _TAGS:
            break
        if len(frame) < at + 4:
            return Kind.OTHER, None
        kind = frame[at + 2 : at + 4]
        at += 4
    if kind == _IPV4:
        return _ipv4(frame, at)
    if kind == _IPV6:
        return _ipv6(frame, at)
    return Kind.OTHER, None


def _ipv4(frame: bytes, at: int) -> tuple[Kind, Packet | None]:
    if len(frame) < at + 20:
        return Kind.MALFORMED, None
    header = (frame[at] & 15) * 4
    length = frame[at + 2] << 8 | frame[at + 3]
    if frame[at] >> 4 != 4 or header < 20 or length < header or at + length > len(frame):  # noqa: PLR2004
        return Kind.MALFORMED, None
    packet = Packet(
        client=frame[at + 12 : at + 16],
        address=frame[at + 16 : at + 20],
        l3=at,
        l4=at + header,
        length=length,
        protocol=frame[at + 9],
        tos=frame[at + 1],
        ttl=frame[at + 8],
        dont_fragment=bool(frame[at + 6] & 0x40),
        plain=header == 20,  # noqa: PLR2004
    )
    if frame[at + 6] & 0x3F or frame[at + 7]:
        return (Kind.FRAGMENT if packet.protocol in {TCP, UDP} else Kind.OTHER), packet
    if packet.protocol == ICMP:
        return Kind.ICMP, packet
    return _transport(frame, packet), packet


def _ipv6(frame: bytes, at: int) -> tuple[Kind, Packet | None]:
    if len(frame) < at + 40:
        return Kind.MALFORMED, None
    length = 40 + (frame[at + 4] << 8 | frame[at + 5])
    if frame[at] >> 4 != 6 or at + length > len(frame):  # noqa: PLR2004
        return Kind.MALFORMED, None
    packet = Packet(
        client=frame[at + 8 : at + 24],
        address=frame[at + 24 : at + 40],
        l3=at,
        l4=at + 40,
        length=length,
        protocol=frame[at + 6],
        tos=(frame[at] & 15) << 4 | frame[at + 1] >> 4,
        ttl=frame[at + 7],
        dont_fragment=True,
        plain=frame[at + 6] not in _EXTENSIONS,
    )
    if not packet.plain:
        kind = _extensions(frame, packet)
        if kind is not Kind.FLOW:
            return kind, packet
    if packet.protocol == ICMPV6:
        return Kind.ICMP, packet
    return _transport(frame, packet), packet


def _extensions(frame: bytes, packet: Packet) -> Kind:
    """Walk over them: FLOW if the packet is no fragment."""
    until = packet.l3 + packet.length
    for _ in range(_MOST_EXTENSIONS):
        at = packet.l4
        if packet.protocol not in _EXTENSIONS:
            return Kind.FLOW
        if at + 8 > until:
            return Kind.MALFORMED
        is_fragment_header = packet.protocol == _FRAGMENT_HEADER
        size = 8 if is_fragment_header else (frame[at + 1] + 1) * 8
        if at + size > until:
            return Kind.MALFORMED
        packet.protocol = frame[at]
        packet.l4 = at + size
        if is_fragment_header and (frame[at + 2] or frame[at + 3] & 0xF9):
            return Kind.FRAGMENT if packet.protocol in {TCP, UDP} else Kind.OTHER
    return Kind.FLOW if packet.protocol not in _EXTENSIONS else Kind.MALFORMED


def _transport(frame: bytes, packet: Packet) -> Kind:
    at, left = packet.l4, packet.length - (packet.l4 - packet.l3)
    if packet.protocol == TCP:
        if left < 20 or frame[at + 12] >> 4 < 5:  # noqa: PLR2004
            return Kind.MALFORMED
        packet.opens = frame[at + 13] & (_SYN | _ACK) == _SYN
    elif packet.protocol == UDP:
        if left < 8:  # noqa: PLR2004
            return Kind.MALFORMED
        length = frame[at + 4] << 8 | frame[at + 5]
        if 0 < length < 8:  # noqa: PLR2004
            return Kind.MALFORMED
    else:
        return Kind.OTHER
    packet.client_port = frame[at] << 8 | frame[at + 1]
    packet.port = frame[at + 2] << 8 | frame[at + 3]
    return Kind.FLOW


def read_quoted(frame: bytes, packet: Packet) -> bool:
    """Make an ICMP error the flow whose packet it quotes (section 4); False: it quotes none."""
    at, until, end = packet.l4 + 8, packet.l3 + packet.length, len(frame)
    if packet.is_ipv4:
        if at + 20 > end:
            return False
        header = (frame[at] & 15) * 4
        if frame[at] >> 4 != 4 or header < 20 or frame[at + 6] & 0x1F or frame[at + 7]:  # noqa: PLR2004
            return False
        source, target = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
        protocol = frame[at + 9]
    else:
        if at + 40 > end or frame[at] >> 4 != 6:  # noqa: PLR2004
            return False
        header = 40
        source, target = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        protocol = frame[at + 6]
    at += header
    if source != packet.address or protocol not in {TCP, UDP} or at + 4 > min(until, end):
        return False
    packet.client = target
    packet.protocol = protocol
    packet.port = frame[at] << 8 | frame[at + 1]
    packet.client_port = frame[at + 2] << 8 | frame[at + 3]
    packet.quoting = True
    return True
