"""Section 2, stamps: the server ID that a packet carries."""

from __future__ import annotations

from sockway.wire.balancer_model.configuration import TCP, Configuration
from sockway.wire.balancer_model.packet import Packet

BAD = -1
"""What stands where options contradict."""
_QUIC_READ = 20
"""Octets that each packet has from its connection ID on."""
_V1, _V2 = b"\0\0\0\1", b"\x6b\x33\x43\xcf"


def read_stamp(configuration: Configuration, frame: bytes, packet: Packet) -> int:
    """The number, which may be no ID; 0: none, `BAD`: its TCP options contradict."""
    if packet.quoting or packet.opens:
        return 0
    if packet.protocol == TCP:
        return _tcp(configuration, frame, packet) if configuration.tcp_kind else 0
    return _quic(configuration, frame, packet)


def _tcp(configuration: Configuration, frame: bytes, packet: Packet) -> int:
    at, end = packet.l4 + 20, packet.l4 + (frame[packet.l4 + 12] >> 4) * 4
    if end > packet.l3 + packet.length:
        return BAD
    shared = configuration.tcp_experiment is not None
    size = 8 if shared else 6
    while at < end and frame[at]:
        if frame[at] == 1:
            at += 1
            continue
        if at + 2 > end or frame[at + 1] < 2 or at + frame[at + 1] > end:  # noqa: PLR2004
            return BAD
        if frame[at] == configuration.tcp_kind and frame[at + 1] == size:
            found = _option(configuration, frame[at : at + size])
            if found or not shared:
                return found
        at += frame[at + 1]
    return 0


def _option(configuration: Configuration, option: bytes) -> int:
    experiment = configuration.tcp_experiment
    if experiment is not None and option[2:4] != experiment.to_bytes(2, "big"):
        return 0
    return int.from_bytes(option[-4:], configuration.tcp_byte_order)


def _quic(configuration: Configuration, frame: bytes, packet: Packet) -> int:
    at, end = packet.l4 + 8, packet.l3 + packet.length
    if at + 2 > end:
        return 0
    if frame[at] & 0x80:
        version, kind = frame[at + 1 : at + 5], frame[at] >> 4 & 3
        if (version, kind) not in {(_V1, 2), (_V2, 3)} or at + 6 > end:
            return 0
        length = frame[at + 5]
        at += 6
    else:
        at += 1
        length = end - at
    if at + _QUIC_READ > end:
        return 0
    connection_id = frame[at : min(at + length, end)]
    read = (codec.decode(connection_id) for codec in configuration.quic_ids)
    return next((int.from_bytes(each, "big") for each in read if each is not None), 0)


__all__ = ["BAD", "read_stamp"]
