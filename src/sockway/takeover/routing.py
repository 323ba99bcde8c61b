"""Whose a packet is, as far as a process can tell that has read it from a shared socket.

A flow that is known by a key (an address, or a connection ID that a client chose) is its who took
its first packet. Others' flows come with the handover; own ones are remembered for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from sockway.takeover.forward import Address, Owner
from sockway.wire.host_id import HostIds

_LARGEST: Final = 1 << 18
"""Entries of a table, before the old ones are looked for."""
_SPARE: Final = 1 << 15
"""What is left free then, so that this is not done for each packet of a flood."""
_LONG_HEADER: Final = 0x80
_TUPLE_LIFETIME: Final = 120.0
_HANDSHAKE_LIFETIME: Final = 30.0

Key = TypeVar("Key")
Row = list[Any]
"""Key, generation, worker, seconds since it was heard of."""
Lives = Callable[[Owner], bool]


def _all_live(_owner: Owner) -> bool:
    return True


class Router(Protocol):
    """Tells whose a packet is."""

    def owner(self, data: bytes, peer: Address) -> Owner | None:
        """The process that it is for; None if for this one."""
        ...

    def orphaned(self, data: bytes, peer: Address) -> None:
        """Its owner is gone: from now on its flow is this process's."""
        ...

    @property
    def kind(self) -> str:
        """What its rows are about; those of another kind are of no use."""
        ...

    def export(self, lives: Lives = _all_live) -> list[Row]:
        """What the next process has to know, of owners that live."""
        ...

    def take(self, rows: Iterable[Row]) -> None:
        """Learn what the process before knew."""
        ...


class Table(Generic[Key]):
    """Flows that are known by a key."""

    def __init__(self, me: Owner, lifetime: float, clock: Callable[[], float] = monotonic) -> None:
        """Know nothing yet."""
        self._me = me
        self._lifetime = lifetime
        self._clock = clock
        self._mine: dict[Key, float] = {}
        self._others: dict[Key, tuple[Owner, float]] = {}

    def owner(self, key: Key) -> Owner | None:
        """Whose it is; from now on this process's, if nobody's."""
        now = self._clock()
        if (other := self._others.get(key)) is not None:
            owner, seen = other
            if now - seen < self._lifetime:
                self._others[key] = (owner, now)
                return owner
            del self._others[key]
        self._mine[key] = now
        if len(self._mine) > _LARGEST:
            self._sweep()
        return None

    def known(self, key: Key) -> bool:
        """Whether it is anybody's."""
        other = self._others.get(key)
        return key in self._mine or (
            other is not None and self._clock() - other[1] < self._lifetime
        )

    def adopt(self, key: Key) -> None:
        """Make it this process's."""
        self._others.pop(key, None)

    def export(self, lives: Lives = _all_live) -> list[Row]:
        """All that were heard of within their lifetime, and whose owners live."""
        now = self._clock()
        oldest = now - self._lifetime
        gone = {
            owner for owner in {owner for owner, _ in self._others.values()} if not lives(owner)
        }
        rows: list[Row] = [
            [key, *self._me, round(now - seen, 3)]
            for key, seen in self._mine.items()
            if seen > oldest
        ]
        rows += [
            [key, *owner, round(now - seen, 3)]
            for key, (owner, seen) in self._others.items()
            if seen > oldest and owner not in gone
        ]
        return rows

    def take(self, rows: Iterable[Row], key_of: Callable[[Any], Key]) -> None:
        """Learn the rows of another's `export`, of which this process's own are nothing new."""
        now = self._clock()
        for key, generation, worker, age in rows:
            owner = Owner(generation, worker)
            if owner == self._me:
                self._mine[key_of(key)] = now - age
            else:
                self._others[key_of(key)] = (owner, now - age)
        if len(self._others) > _LARGEST:
            # The ones longest unheard of: of several generations' there may be too many.
            by_age = sorted(self._others.items(), key=lambda item: item[1][1])
            self._others = dict(by_age[-_LARGEST:])

    def _sweep(self) -> None:
        oldest = self._clock() - self._lifetime
        self._mine = {key: seen for key, seen in self._mine.items() if seen >= oldest}
        while len(self._mine) > _LARGEST - _SPARE:  # all of them live: the first ones in go
            del self._mine[next(iter(self._mine))]


class ByAddress:
    """Plain UDP: a flow is a peer's address."""

    kind = "tuple"

    def __init__(self, me: Owner) -> None:
        """Know no flow yet."""
        self._table: Table[Address] = Table(me, _TUPLE_LIFETIME)

    def owner(self, data: bytes, peer: Address) -> Owner | None:  # noqa: ARG002
        """See `Router`."""
        return self._table.owner(peer)

    def orphaned(self, data: bytes, peer: Address) -> None:  # noqa: ARG002
        """See `Router`."""
        self._table.adopt(peer)

    def export(self, lives: Lives = _all_live) -> list[Row]:
        """See `Router`."""
        return self._table.export(lives)

    def take(self, rows: Iterable[Row]) -> None:
        """See `Router`."""
        self._table.take(rows, tuple)


class ByConnectionId:
    """QUIC: the connection ID names the owner, else it was chosen by a client."""

    kind = "quic"

    def __init__(self, me: Owner, key: bytes, length: int) -> None:
        """Take the key and the length of the service's IDs."""
        self._me = me
        self._ids = HostIds(key, length)
        self._end = 1 + length
        self._decoded: dict[bytes, Owner] = {}
        self._handshakes: Table[bytes] = Table(me, _HANDSHAKE_LIFETIME)

    def owner(self, data: bytes, peer: Address) -> Owner | None:  # noqa: ARG002
        """See `Router`."""
        cid = self._id(data)
        owner = self._decoded.get(cid)
        if owner is None and not self._handshakes.known(cid):
            owner = self._decode(cid)
        if owner is not None:
            return None if owner == self._me else owner
        if data and data[0] & _LONG_HEADER:
            return self._handshakes.owner(cid)
        return None  # no ID of ours: the server knows what to say to that

    def orphaned(self, data: bytes, peer: Address) -> None:  # noqa: ARG002
        """See `Router`."""
        self._handshakes.adopt(self._id(data))

    def export(self, lives: Lives = _all_live) -> list[Row]:
        """See `Router`."""
        return [[key.hex(), *rest] for key, *rest in self._handshakes.export(lives)]

    def take(self, rows: Iterable[Row]) -> None:
        """See `Router`."""
        self._handshakes.take(rows, bytes.fromhex)

    def _id(self, data: bytes) -> bytes:
        if data and data[0] & _LONG_HEADER:
            return data[6 : 6 + data[5]] if len(data) > 5 else b""  # noqa: PLR2004 - RFC 8999
        return data[1 : self._end]

    def _decode(self, cid: bytes) -> Owner | None:
        found = self._ids.read(cid)
        if found is None:
            return None
        if len(self._decoded) > _LARGEST:
            self._decoded.clear()
        owner = self._decoded[cid] = Owner(*found)
        return owner
