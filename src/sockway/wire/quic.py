"""QUIC packet headers, as far as they can be read without keys.

A datagram holds one or more packets. What the first octet and, in long headers, the version say
decides what follows; the two tables below are all that there is to it:

    first bit 1   long header   version, both connection IDs with their lengths; then by version:
                                0        a list of versions (Version Negotiation)
                                1 or 2   by type, see _FIELDS
                                other    nothing that can be known (RFC 8999, section 5.1)
    first bit 0   short header  the destination's ID, whose length the receiver has to know;
                                always the last packet of its datagram

Versions 1 (RFC 9000) and 2 (RFC 9369) differ in what the two type bits mean, see _TYPES. Of the
rest of a packet, only Length is read: it tells where the next packet starts. The fixed bit is
reported and not judged, because peers may agree to vary it (RFC 9287).

Nothing here raises: a datagram comes from anybody, so what can't be read is a value too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from sockway.wire.host_id import MAX_LENGTH as MAX_ID_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NEGOTIATION: Final = 0
VERSION_1: Final = 0x0000_0001
VERSION_2: Final = 0x6B33_43CF
RETRY_TAG_LENGTH: Final = 16
"""Octets at the end of a Retry packet (RFC 9001, section 5.8)."""

_LONG: Final = 0x80
_FIXED: Final = 0x40
_VERSION_LENGTH: Final = 4


class PacketType(Enum):
    """What a packet with a long header is for."""

    INITIAL = auto()
    ZERO_RTT = auto()
    HANDSHAKE = auto()
    RETRY = auto()
    VERSION_NEGOTIATION = auto()
    OTHER = auto()
    """Of a version that is not known here."""


class Flaw(Enum):
    """Why a packet can't be read."""

    EMPTY = "the datagram is empty"
    CUT_OFF = "the datagram ends within the header"
    ID_TOO_LONG = "a connection ID is longer than the version allows"
    PAYLOAD_CUT_OFF = "the datagram ends before the packet does"


@dataclass(frozen=True, slots=True)
class LongHeader:
    """A packet of the handshake, or of a version that is not known."""

    type: PacketType
    version: int
    destination_id: bytes
    source_id: bytes
    fixed_bit: bool
    length: int
    """Octets of the whole packet, header included."""
    token: bytes = b""
    """Of Initial and Retry packets."""
    versions: tuple[int, ...] = ()
    """What the server speaks, in Version Negotiation packets."""


@dataclass(frozen=True, slots=True)
class ShortHeader:
    """A packet of an established connection."""

    destination_id: bytes
    fixed_bit: bool
    length: int
    """Octets of the whole packet: it reaches to the end of the datagram."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """What is left of a datagram that can't be read."""

    flaw: Flaw
    length: int
    """Octets that are left, the unreadable packet's first octet included."""


Packet = LongHeader | ShortHeader | Malformed


class _Field(Enum):
    """What may follow the connection IDs of a long header."""

    TOKEN = auto()
    """A length and as many octets."""
    LENGTH = auto()
    """Octets of packet number and payload."""
    RETRY_TOKEN = auto()
    """All up to the integrity tag."""
    VERSIONS = auto()
    """Four octets each, up to the end."""
    REST = auto()
    """All up to the end, of a meaning that is not known."""


_TYPES: Final[Mapping[int, tuple[PacketType, ...]]] = {
    VERSION_1: (  # RFC 9000, section 17.2, table 5
        PacketType.INITIAL,
        PacketType.ZERO_RTT,
        PacketType.HANDSHAKE,
        PacketType.RETRY,
    ),
    VERSION_2: (  # RFC 9369, section 3.2
        PacketType.RETRY,
        PacketType.INITIAL,
        PacketType.ZERO_RTT,
        PacketType.HANDSHAKE,
    ),
    NEGOTIATION: (PacketType.VERSION_NEGOTIATION,) * 4,  # RFC 9000, section 17.2.1
}

_FIELDS: Final[Mapping[PacketType, tuple[_Field, ...]]] = {
    PacketType.INITIAL: (_Field.TOKEN, _Field.LENGTH),  # RFC 9000, section 17.2.2
    PacketType.ZERO_RTT: (_Field.LENGTH,),  # section 17.2.3
    PacketType.HANDSHAKE: (_Field.LENGTH,),  # section 17.2.4
    PacketType.RETRY: (_Field.RETRY_TOKEN,),  # section 17.2.5
    PacketType.VERSION_NEGOTIATION: (_Field.VERSIONS,),  # section 17.2.1
    PacketType.OTHER: (_Field.REST,),  # RFC 8999, section 5.1
}


def parse(datagram: bytes, id_length: int) -> Packet:
    """Read the first packet of a datagram.

    Args:
        datagram: the UDP payload.
        id_length: octets of the IDs that the receiver has given out, for short headers.

    """
    cursor = _Cursor(datagram)
    try:
        return _packet(cursor, id_length)
    except _Unreadable as unreadable:
        return Malformed(unreadable.flaw, len(datagram))


def packets(datagram: bytes, id_length: int) -> Iterator[Packet]:
    """Read all packets of a datagram (RFC 9000, section 12.2).

    Whether they belong together is the receiver's to say. What can't be read ends the datagram.

    Args:
        datagram: the UDP payload.
        id_length: octets of the IDs that the receiver has given out, for short headers.

    """
    while True:
        packet = parse(datagram, id_length)
        yield packet
        datagram = datagram[packet.length :]
        if not datagram:
            return


class _Unreadable(Exception):  # noqa: N818 - never leaves this module
    """A packet can't be read on."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw)
        self.flaw = flaw


class _Cursor:
    """Takes a datagram apart from its start."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    @property
    def left(self) -> int:
        """Octets not taken yet."""
        return len(self._data) - self.at

    def take(self, count: int, flaw: Flaw = Flaw.CUT_OFF) -> bytes:
        """The next octets."""
        if count > self.left:
            raise _Unreadable(flaw)
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, count: int) -> int:
        """The next octets as a number in network order."""
        return int.from_bytes(self.take(count))

    def variable(self) -> int:
        """A variable-length integer (RFC 9000, section 16)."""
        first = self.number(1)
        more = (1 << (first >> 6)) - 1
        return (first & 0x3F) << 8 * more | self.number(more)

    def connection_id(self, limit: int) -> bytes:
        """A connection ID behind the octet that has its length."""
        length = self.number(1)
        if length > limit:
            raise _Unreadable(Flaw.ID_TOO_LONG)
        return self.take(length)


def _packet(cursor: _Cursor, id_length: int) -> LongHeader | ShortHeader:
    """The packet that starts at the start of the datagram."""
    if not cursor.left:
        raise _Unreadable(Flaw.EMPTY)
    first = cursor.number(1)
    fixed_bit = bool(first & _FIXED)
    if not first & _LONG:
        destination_id = cursor.take(id_length)
        return ShortHeader(destination_id, fixed_bit, length=cursor.at + cursor.left)
    return _long(cursor, first, fixed_bit=fixed_bit)


def _long(cursor: _Cursor, first: int, *, fixed_bit: bool) -> LongHeader:
    """A long header, behind its first octet."""
    version = cursor.number(_VERSION_LENGTH)
    # The invariants allow IDs of any length that an octet can tell; versions 1 and 2 do not.
    limit = MAX_ID_LENGTH if version in {VERSION_1, VERSION_2} else 255
    destination_id = cursor.connection_id(limit)
    source_id = cursor.connection_id(limit)
    types = _TYPES.get(version)
    kind = types[first >> 4 & 0b11] if types else PacketType.OTHER
    token = b""
    versions: list[int] = []
    for field in _FIELDS[kind]:
        match field:
            case _Field.TOKEN:
                token = cursor.take(cursor.variable())
            case _Field.LENGTH:
                cursor.take(cursor.variable(), Flaw.PAYLOAD_CUT_OFF)
            case _Field.RETRY_TOKEN:
                token = cursor.take(max(0, cursor.left - RETRY_TAG_LENGTH))
                cursor.take(RETRY_TAG_LENGTH)
            case _Field.VERSIONS:
                while cursor.left:
                    versions.append(cursor.number(_VERSION_LENGTH))
            case _Field.REST:
                cursor.take(cursor.left)
    return LongHeader(
        kind,
        version,
        destination_id,
        source_id,
        fixed_bit,
        length=cursor.at,
        token=token,
        versions=tuple(versions),
    )
