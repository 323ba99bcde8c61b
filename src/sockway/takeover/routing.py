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
_LONG_HEADER: Final = 0x80
_TUPLE_LIFETIME: Final = 120.0
_HANDSHAKE_LIFETIME: Final = 30.0

Key = TypeVar("Key")
Row = list[Any]
"""Key, generation, worker, seconds since it was heard of."""


class Router(Protocol):
    """Tells whose a packet is."""

    def owner(self, data: bytes, peer: Address) -> Owner | None:
        """The process that it is for; None if for this one."""
        ...

    def orphaned(self, data: bytes, peer: Address) -> None:
        """Its owner is gone: from now on its flow is this process's."""
        ...

    def export(self) -> list[Row]:
        """What the next process has to know."""
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
        self._others: dict[Key, Owner] = {}

    def owner(self, key: Key) -> Owner | None:
        """Whose it is; from now on this process's, if nobody's."""
        owner = self._others.get(key)
        if owner is None:
            self._mine[key] = self._clock()
            if len(self._mine) > _LARGEST:
                self._sweep()
        return owner

    def known(self, key: Key) -> bool:
        """Whether it is anybody's."""
        return key in self._others or key in self._mine

    def adopt(self, key: Key) -> None:
        """Make it this process's."""
        self._others.pop(key, None)

    def export(self) -> list[Row]:
        """All that live, whoever's they are."""
        now = self._clock()
        own = [
            [key, *self._me, round(now - seen, 3)]
            for key, seen in self._mine.items()
            if now - seen < self._lifetime
        ]
        return own + [[key, *owner, 0.0] for key, owner in self._others.items()]

    def take(self, rows: Iterable[Row], key_of: Callable[[Any], Key]) -> None:
        """Learn the rows of another's `export`, of which this process's own are nothing new."""
        for key, generation, worker, age in rows:
            owner = Owner(generation, worker)
            if owner == self._me:
                self._mine[key_of(key)] = self._clock() - age
            else:
                self._others[key_of(key)] = owner

    def _sweep(self) -> None:
        oldest = self._clock() - self._lifetime
        self._mine = {key: seen for key, seen in self._mine.items() if seen >= oldest}
        while len(self._mine) > _LARGEST:  # all of them live: the first ones in go
            del self._mine[next(iter(self._mine))]


class ByAddress:
    """Plain UDP: a flow is a peer's address."""

    def __init__(self, me: Owner) -> None:
        """Know no flow yet."""
        self._table: Table[Address] = Table(me, _TUPLE_LIFETIME)

    def owner(self, data: bytes, peer: Address) -> Owner | None:  # noqa: ARG002
        """See `Router`."""
        return self._table.owner(peer)

    def orphaned(self, data: bytes, peer: Address) -> None:  # noqa: ARG002
        """See `Router`."""
        self._table.adopt(peer)

    def export(self) -> list[Row]:
        """See `Router`."""
        return self._table.export()

    def take(self, rows: Iterable[Row]) -> None:
        """See `Router`."""
        self._table.take(rows, tuple)


class ByConnectionId:
    """QUIC: the connection ID names the owner, else it was chosen by a client."""

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

    def export(self) -> list[Row]:
        """See `Router`."""
        return [[key.hex(), *rest] for key, *rest in self._handshakes.export()]

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
