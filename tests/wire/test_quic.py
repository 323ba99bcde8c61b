from __future__ import annotations

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.packet import QuicHeader, QuicPacketType, pull_quic_header
from hypothesis import given
from hypothesis import strategies as st

from sockway.wire.quic import (
    VERSION_1,
    VERSION_2,
    Flaw,
    LongHeader,
    Malformed,
    PacketType,
    ShortHeader,
    packets,
    parse,
)

TYPES = {
    PacketType.INITIAL: QuicPacketType.INITIAL,
    PacketType.ZERO_RTT: QuicPacketType.ZERO_RTT,
    PacketType.HANDSHAKE: QuicPacketType.HANDSHAKE,
    PacketType.RETRY: QuicPacketType.RETRY,
    PacketType.VERSION_NEGOTIATION: QuicPacketType.VERSION_NEGOTIATION,
}
TYPE_BITS = {
    VERSION_1: {"initial": 0, "0rtt": 1, "handshake": 2, "retry": 3},
    VERSION_2: {"initial": 1, "0rtt": 2, "handshake": 3, "retry": 0},
}

ids = st.binary(max_size=20)


def _variable(draw: st.DrawFn, value: int) -> bytes:
    """A number in any of the encodings that hold it."""
    sizes = [size for size in range(4) if value < 1 << ((8 << size) - 2)]
    size = draw(st.sampled_from(sizes))
    return (size << ((8 << size) - 2) | value).to_bytes(1 << size)


@st.composite
def long_packets(draw: st.DrawFn) -> bytes:
    """A well-formed packet with a long header, of version 1 or 2, or Version Negotiation."""
    version = draw(st.sampled_from([VERSION_1, VERSION_2, 0]))
    kind = draw(st.sampled_from(["initial", "0rtt", "handshake", "retry"]))
    bits = TYPE_BITS[version][kind] << 4 if version else draw(st.integers(0, 3)) << 4
    first = 0xC0 | bits | draw(st.integers(0, 15))
    destination_id, source_id = draw(ids), draw(ids)
    packet = bytes([first]) + version.to_bytes(4)
    packet += bytes([len(destination_id)]) + destination_id + bytes([len(source_id)]) + source_id
    if version == 0:
        return packet + b"".join(draw(st.lists(st.binary(min_size=4, max_size=4), max_size=4)))
    if kind == "retry":
        return packet + draw(st.binary(min_size=16, max_size=40))
    if kind == "initial":
        token = draw(st.binary(max_size=70))
        packet += _variable(draw, len(token)) + token
    payload = draw(st.binary(max_size=70))
    return packet + _variable(draw, len(payload)) + payload


@st.composite
def datagrams(draw: st.DrawFn) -> bytes:
    """Datagrams as they are and as they should not be."""
    datagram = b"".join(draw(st.lists(long_packets(), max_size=3)))
    if draw(st.booleans()):
        datagram += b"\x40" + draw(st.binary(max_size=40))
    damage = draw(st.sampled_from(["none", "none", "cut", "octet", "chance"]))
    if damage == "cut":
        datagram = datagram[: draw(st.integers(0, len(datagram)))]
    elif damage == "octet" and datagram:
        at = draw(st.integers(0, min(30, len(datagram) - 1)))
        datagram = datagram[:at] + bytes([draw(st.integers(0, 255))]) + datagram[at + 1 :]
    elif damage == "chance":
        datagram = draw(st.binary(max_size=80))
    return datagram


def _independent(datagram: bytes, id_length: int) -> list[QuicHeader | None]:
    """What aioquic reads, packet by packet, as its connections do; None: what it can't read."""
    headers: list[QuicHeader | None] = []
    buffer = Buffer(data=datagram)
    while not buffer.eof():
        start = buffer.tell()
        try:
            header = pull_quic_header(buffer, host_cid_length=id_length)
        except ValueError:
            return [*headers, None]
        headers.append(header)
        buffer.seek(start + header.packet_length)
    return headers


@given(datagram=datagrams(), id_length=st.integers(0, 20))
def test_agrees_with_an_independent_parser(datagram: bytes, id_length: int) -> None:
    """Ours reads what aioquic reads, and the same from it, wherever aioquic has a say."""
    for ours, theirs in zip(
        packets(datagram, id_length), _independent(datagram, id_length), strict=False
    ):
        if isinstance(ours, Malformed):
            assert theirs is None
            return
        if isinstance(ours, ShortHeader):
            # aioquic judges the fixed bit, which we leave to the peers.
            assert (theirs is None) == (not ours.fixed_bit)
            if theirs is not None:
                assert theirs.packet_type == QuicPacketType.ONE_RTT
                assert theirs.destination_cid == ours.destination_id
                assert theirs.packet_length == ours.length
            return
        if ours.type == PacketType.OTHER:
            return  # aioquic takes unknown versions for version 1
        if theirs is None:
            # The other two things that it judges.
            too_long = len(max(ours.destination_id, ours.source_id, key=len)) > 20
            assert too_long or not ours.fixed_bit
            return
        assert theirs.packet_type == TYPES[ours.type]
        assert theirs.version == ours.version
        assert theirs.destination_cid == ours.destination_id
        assert theirs.source_cid == ours.source_id
        assert theirs.token == ours.token
        assert tuple(theirs.supported_versions) == ours.versions
        assert theirs.packet_length == ours.length


@given(datagram=datagrams() | st.binary(max_size=120), id_length=st.integers(0, 20))
def test_packets_fill_the_datagram(datagram: bytes, id_length: int) -> None:
    """Any octets are read to their end, each once, and only the last packet may be unreadable."""
    found = list(packets(datagram, id_length))
    assert sum(packet.length for packet in found) == len(datagram)
    assert not any(isinstance(packet, Malformed) for packet in found[:-1])
    assert found[0] == parse(datagram, id_length)


def test_an_unknown_version_shows_its_ids() -> None:
    """The invariants hold for versions to come: IDs of up to 255 octets, and no more is known."""
    datagram = b"\x80" + b"\x1a\x2a\x3a\x4a" + b"\xff" + bytes(255) + b"\x01" + b"s" + b"rest"
    assert parse(datagram, 8) == LongHeader(
        PacketType.OTHER,
        0x1A2A3A4A,
        bytes(255),
        b"s",
        fixed_bit=False,
        length=len(datagram),
    )


def test_type_bits_depend_on_the_version() -> None:
    """An Initial of version 1 has the type bits of a Retry of version 2."""
    rest = b"\x01d\x00\x00\x00" + bytes(16)
    first = parse(b"\xc0" + VERSION_1.to_bytes(4) + rest, 8)
    second = parse(b"\xc0" + VERSION_2.to_bytes(4) + rest, 8)
    assert isinstance(first, LongHeader)
    assert isinstance(second, LongHeader)
    assert first.type == PacketType.INITIAL
    assert second.type == PacketType.RETRY


def test_flaws() -> None:
    """What can't be read says why."""
    header = b"\xc0" + VERSION_1.to_bytes(4)
    assert parse(b"", 8) == Malformed(Flaw.EMPTY, 0)
    assert parse(b"\x40" + bytes(7), 8) == Malformed(Flaw.CUT_OFF, 8)
    assert parse(header, 8) == Malformed(Flaw.CUT_OFF, 5)
    assert parse(header + b"\x15" + bytes(40), 8) == Malformed(Flaw.ID_TOO_LONG, 46)
    assert parse(header + b"\0\0\0\x05abcd", 8) == Malformed(Flaw.PAYLOAD_CUT_OFF, 13)


def test_a_short_header_ends_the_datagram() -> None:
    """It has no length of its own, so all octets behind it are its own."""
    handshake = b"\xe0" + VERSION_1.to_bytes(4) + b"\x01d\x01s\x02pp"
    first, second = packets(handshake + b"\x40" + b"connection" + b"payload", 10)
    assert isinstance(first, LongHeader)
    assert first.length == len(handshake)
    assert second == ShortHeader(b"connection", fixed_bit=True, length=18)
