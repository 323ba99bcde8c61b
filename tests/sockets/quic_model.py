"""What the router should decide for a QUIC datagram, in Python: sockway.wire and three dicts."""

from __future__ import annotations

from dataclasses import dataclass, field

from sockway import HostIds
from sockway.wire import quic
from sockway.wire.host_id import MAX_LENGTH
from sockway.wire.quic import PacketType

Owner = tuple[int, int]
"""Generation number and worker."""

WINDOW = 25
"""Octets below which no ID is looked for: flags and the longest prefix that is read at once."""
CHOSEN = 8
"""Shortest ID that a client may choose (RFC 9000, section 7.2)."""
_OPENING = {PacketType.INITIAL, PacketType.ZERO_RTT, PacketType.OTHER}
_LONG = 0x80
_ANY_VERSION = (0x1A1A1A1A).to_bytes(4, "big")


@dataclass
class Model:
    """A service with one VIP, `flow=quic`."""

    ids: HostIds
    foreign: bool
    id_length: int
    generations: dict[int, int] = field(default_factory=dict)
    """Workers of each live generation."""
    published: int = 0
    by_id: dict[bytes, Owner] = field(default_factory=dict)
    by_client: dict[tuple[object, bytes], Owner] = field(default_factory=dict)
    by_address: dict[object, Owner] = field(default_factory=dict)

    def decide(self, datagram: bytes, source: object) -> tuple[str, Owner | None]:
        """The router's decision, and the owner where one is known."""
        if len(datagram) < WINDOW:
            return self._by_address(source)
        if datagram[0] & _LONG:
            return self._long(datagram, source)
        packet = quic.parse(datagram, self.id_length)
        assert isinstance(packet, quic.ShortHeader)
        owner = self._named(packet.destination_id)
        return ("owner_by_id", owner) if owner else self._by_address(source)

    def learn(self, datagram: bytes, source: object, owner: Owner) -> None:
        """A new flow's packet went to this owner."""
        header = _header(datagram)
        assert header is not None
        to, by, _ = header
        if len(to) >= CHOSEN:
            self.by_id[to] = owner
        if self.foreign:
            self.by_client[source, by] = owner
            self.by_address[source] = owner

    def _named(self, connection: bytes) -> Owner | None:
        read = self.ids.read(connection)
        if read is None:
            return None
        for number, workers in self.generations.items():
            if number & 0xFF == read.generation_octet and read.worker < workers:
                return number, read.worker
        return None

    def _by_address(self, source: object) -> tuple[str, Owner | None]:
        owner = self.by_address.get(source)
        return ("owner_by_table", owner) if owner else ("stray", None)

    def _long(self, datagram: bytes, source: object) -> tuple[str, Owner | None]:
        header = _header(datagram)
        if header is None:
            return "stray", None
        to, by, opens = header
        if owner := self._named(to):
            return "owner_by_id", owner
        if opens and len(to) >= CHOSEN and to in self.by_id:
            return "owner_by_table", self.by_id[to]
        if (source, by) in self.by_client:
            return "owner_by_table", self.by_client[source, by]
        return ("new_flow", None) if opens else ("stray", None)


def _header(datagram: bytes) -> tuple[bytes, bytes, bool] | None:
    """Both IDs of a long header, and whether its packet may open a connection."""
    # As a version that is not known, so that a payload cut short does not make it unreadable.
    packet = quic.parse(datagram[:1] + _ANY_VERSION + datagram[5:], 0)
    if not isinstance(packet, quic.LongHeader):
        return None
    to, by = packet.destination_id, packet.source_id
    if max(len(to), len(by)) > MAX_LENGTH:
        return None
    types = quic._TYPES.get(int.from_bytes(datagram[1:5], "big"))
    kind = types[datagram[0] >> 4 & 3] if types else PacketType.OTHER
    return to, by, kind in _OPENING
