"""The VIP table in the kernel's memory: where an entry may be, and how it comes and goes.

Packets read it while it changes. An entry is made with its use bit last, so it is seen whole or not
at all; one that goes is marked as deleted and stays, for the rows of probes that pass it, until
its place is taken again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sockway.balancer import layout
from sockway.balancer.layout import IpAddress
from sockway.errors import StateError

_GOLDEN = 0x9E3779B1
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class VipKey:
    """What a packet is looked up by. Port 0: any; protocol 0 too: the address itself."""

    address: IpAddress
    port: int
    protocol: int

    def __str__(self) -> str:
        """As people write it."""
        host = f"[{self.address}]" if self.address.version == 6 else f"{self.address}"  # noqa: PLR2004
        if not self.protocol:
            return str(self.address)
        name = {6: "tcp", 17: "udp"}.get(self.protocol, str(self.protocol))
        return f"{name}://{host}:{self.port or '*'}"


@dataclass(frozen=True)
class VipValue:
    """What an entry says."""

    pool: int
    index: int
    flags: int
    flow_mask: int


class VipTable:
    """The table, over the map's memory."""

    def __init__(self, memory: Any, buckets: int) -> None:
        """Take over the memory of `buckets` buckets, a power of two."""
        self._memory = memory
        self._buckets = buckets
        self._shift = 32 - (buckets.bit_length() - 1)
        self._deleted = layout.flag("balancer_vip_flag", "VIP_DELETED")
        self._probes = layout.limit("VIP_PROBES")

    def put(self, key: VipKey, value: VipValue) -> None:
        """Make an entry, or change it.

        Raises:
            StateError: its row is full; a larger table is needed.

        """
        entry = self._find(key)
        if entry is None:
            entry = self._free(key)
            if entry is None:
                raise StateError(f"there is no room in the VIP table for {key}")
            entry.flags |= self._deleted  # until it is whole
            entry.in_use = 1
            entry.address[:] = layout.words(key.address)
            entry.port, entry.protocol = layout.swapped(key.port), key.protocol
        entry.pool, entry.index = value.pool, value.index
        entry.flow_mask = value.flow_mask
        entry.flags = value.flags

    def remove(self, key: VipKey) -> None:
        """Take an entry out; it is no error if there is none."""
        entry = self._find(key)
        if entry is not None:
            entry.flags = self._deleted

    def get(self, key: VipKey) -> VipValue | None:
        """What the entry says."""
        entry = self._find(key)
        return None if entry is None else _value(entry)

    def items(self) -> Iterator[tuple[VipKey, VipValue]]:
        """All entries."""
        for bucket in self._memory:
            for entry in bucket.way:
                if entry.in_use and not entry.flags & self._deleted:
                    address = layout.address_of(entry.address)
                    port = layout.swapped(entry.port)
                    yield VipKey(address, port, entry.protocol), _value(entry)

    def _row(self, key: VipKey) -> Iterator[Any]:
        first, second, third, fourth = layout.words(key.address)
        mixed = first ^ second ^ third ^ fourth ^ (layout.swapped(key.port) | key.protocol << 16)
        index = (mixed * _GOLDEN & _WORD) >> self._shift
        for probe in range(self._probes):
            yield from self._memory[(index + probe) % self._buckets].way

    def _find(self, key: VipKey) -> Any:
        words = layout.words(key.address)
        port = layout.swapped(key.port)
        for entry in self._row(key):
            if not entry.in_use:
                return None
            if (
                entry.port == port
                and entry.protocol == key.protocol
                and tuple(entry.address) == words
                and not entry.flags & self._deleted
            ):
                return entry
        return None

    def _free(self, key: VipKey) -> Any:
        for entry in self._row(key):
            if not entry.in_use or entry.flags & self._deleted:
                return entry
        return None


def buckets_for(entries: int) -> int:
    """Buckets of a table for so many entries: mostly empty, so that rows stay short."""
    return 1 << max(6, (2 * entries - 1).bit_length())


def _value(entry: Any) -> VipValue:
    return VipValue(entry.pool, entry.index, entry.flags, entry.flow_mask)
