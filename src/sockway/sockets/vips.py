"""The service's VIPs in the router's map: which group each has, and how it is routed.

A VIP that is bound has a group of its own: its sockets. The members of a wildcard are VIPs below
it; they share its group and have their own counters. Groups and counter indices are numbers that
the map's records hold, so whoever reads the map knows them all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sockway.errors import ConfigError, StateError
from sockway.sockets import layout
from sockway.sockets.counters import clear_vip
from sockway.sockets.state import MAX_VIPS, RouterState
from sockway.wire.addresses import Address, FlowMode, IdSource, Spread, Vip

_PROTOCOLS = {"tcp": 6, "udp": 17}


@dataclass(frozen=True)
class PlacedVip:
    """A VIP with its place in the router."""

    vip: Vip
    group: int
    """Which sockets: the first half of an array's key."""
    index: int
    """Of its counters."""
    is_member: bool = False
    """Below a wildcard: it has no sockets of its own."""


def label(vip: Vip) -> str:
    """What a VIP is called in counters: its URL without options."""
    is_ipv6 = isinstance(vip.address, ipaddress.IPv6Address)
    host = f"[{vip.address}]" if is_ipv6 else str(vip.address)
    return f"{vip.protocol}://{host}:{vip.port}"


class VipTable:
    """The `vips` map of a service, read and written as `Vip`s."""

    def __init__(self, state: RouterState) -> None:
        """Work on the pinned map of `state`."""
        self._state = state
        self._map = state.maps["vips"]

    def read(self) -> list[PlacedVip]:
        """All VIPs, in the order of their groups, a wildcard before its members."""
        found = [_placed(key, record) for key, record in self._map.items()]
        members: dict[int, list[Address]] = {}
        for placed in found:
            if placed.is_member:
                members.setdefault(placed.group, []).append(placed.vip.address)
        full = [
            replace(p, vip=replace(p.vip, members=tuple(members.get(p.group, ()))))
            if not p.is_member
            else p
            for p in found
        ]
        return sorted(full, key=lambda p: (p.group, p.is_member, p.vip))

    def write(self, vips: Iterable[Vip], *, may_change: bool) -> list[PlacedVip]:
        """Make the map hold these VIPs too, and return those that are bound.

        Args:
            vips: what the next generation binds.
            may_change: no generation is live, so how a VIP's packets find their owners may
                change.

        Raises:
            ConfigError: two VIPs are the same, or there are more than the service has room for.
            StateError: a VIP that is being served would find its owners another way.

        """
        wanted = list(vips)
        present = {_key_bytes(p.vip): p for p in self.read()}
        self._check(wanted, present, may_change=may_change)
        groups = _unused(p.group for p in present.values())
        indices = _unused(p.index for p in present.values())
        bound: list[PlacedVip] = []
        keys: list[Any] = []
        records: list[Any] = []
        for vip in wanted:
            before = present.get(_key_bytes(vip))
            placed = PlacedVip(
                vip, before.group if before else next(groups), before.index if before else 0
            )
            bound.append(placed)
            for each in (placed, *_members_of(placed)):
                known = present.get(_key_bytes(each.vip))
                index = known.index if known else next(indices)
                if not known:
                    clear_vip(self._state, index)
                keys.append(_key(each.vip))
                records.append(_record(replace(each, index=index)))
        self._map.update_batch(keys, records)
        for key, record in zip(keys, records, strict=True):
            self._remember(key, record)
        return bound

    def drop(self, groups: set[int]) -> None:
        """Take out the VIPs of these groups: nothing is bound for them any more."""
        for placed in self.read():
            if placed.group in groups:
                key = _key(placed.vip)
                self._forget(key)
                self._map.pop(key, None)

    # The router's cache of the map: a packet for a VIP that is in it pays no hash look-up.

    def _remember(self, key: Any, record: Any) -> None:
        """Write the VIP into its slot, if that is free or the VIP's own.

        The slot says whose it is last, so that a packet never finds half of a new VIP.
        """
        slot = self._state.record.vip_slots[slot_of(key)]
        if slot.key.protocol and bytes(slot.key) != bytes(key):
            return
        slot.vip = record
        slot.key.address[:] = key.address[:]
        slot.key.port = key.port
        slot.key.protocol = key.protocol

    def _forget(self, key: Any) -> None:
        slot = self._state.record.vip_slots[slot_of(key)]
        if bytes(slot.key) == bytes(key):
            slot.key.protocol = 0

    def _check(
        self, wanted: list[Vip], present: dict[bytes, PlacedVip], *, may_change: bool
    ) -> None:
        seen: dict[bytes, Vip] = {}
        for vip in wanted:
            for each in (vip, *(m.vip for m in _members_of(PlacedVip(vip, 0, 0)))):
                twin = seen.setdefault(_key_bytes(each), each)
                if twin is not each:
                    raise ConfigError(
                        f"{label(each)} is there twice", hint="name each VIP once in a service"
                    )
            before = present.get(_key_bytes(vip))
            if before and not may_change and _routing(before.vip) != _routing(vip):
                raise StateError(
                    f"{label(vip)} is being served as {before.vip} and can't become {vip}: "
                    "packets of its flows would lose their owner",
                    hint="stop the service first, or use another port",
                )
        room = self._map.info.max_entries
        total = len(seen.keys() | present.keys())
        if total > room:
            raise ConfigError(
                f"{total} VIPs, and the service was made for {room}",
                hint=f"stop it and start it with these; a service can have {MAX_VIPS}",
            )


def _routing(vip: Vip) -> tuple[object, ...]:
    return (vip.flow, vip.id_length, vip.id_offset, vip.ids)


def _unused(taken: Iterable[int]) -> Iterator[int]:
    used = set(taken)
    number = 1
    while True:
        if number not in used:
            yield number
        number += 1


def _members_of(placed: PlacedVip) -> Iterator[PlacedVip]:
    for address in placed.vip.members:
        # A member is known by its own address; the rest is the wildcard's.
        yield PlacedVip(
            replace(placed.vip, address=address, members=(), v6only=False), placed.group, 0, True
        )


def _key(vip: Vip) -> Any:
    return layout.struct("vip_key").from_buffer_copy(_key_bytes(vip))


def _key_bytes(vip: Vip) -> bytes:
    key = layout.struct("vip_key")()
    key.address[:] = memoryview(vip.key_address).cast("I")
    key.port = vip.port
    key.protocol = _PROTOCOLS[vip.protocol]
    return bytes(key)


def slot_of(key: Any) -> int:
    """Where a VIP's key is in the cache: `vip_slot` in bpf/vip.h."""
    a, b, c, d = key.address
    mixed = (a ^ b ^ c ^ d ^ key.port ^ key.protocol << 16) & 0xFFFFFFFF
    return int((mixed * 0x9E3779B1 & 0xFFFFFFFF) >> (32 - layout.limit("VIP_SLOTS_SHIFT")))


def _flag(name: str) -> int:
    return layout.constant("vip_flag", f"VIP_{name}")


def _record(placed: PlacedVip) -> Any:
    vip = placed.vip
    record = layout.struct("vip")()
    record.group = placed.group
    record.index = placed.index
    record.spread = layout.constant("spread", f"SPREAD_{vip.spread.name}")
    record.flow = layout.constant("flow_mode", f"FLOW_MODE_{vip.flow.name}")
    record.id_length = vip.id_length
    record.id_offset = vip.id_offset
    record.flags = (
        (_flag("HAS_MEMBERS") if vip.members else 0)
        | (_flag("FOREIGN_IDS") if vip.ids is IdSource.ANY else 0)
        | (_flag("V6ONLY") if vip.v6only else 0)
        | (_flag("MEMBER") if placed.is_member else 0)
    )
    return record


def _placed(key: Any, record: Any) -> PlacedVip:
    address = ipaddress.IPv6Address(bytes(key.address))
    flow = FlowMode(_name_of("flow_mode", record.flow, "FLOW_MODE_"))
    has_ids = flow in {FlowMode.QUIC, FlowMode.COOKIE}
    foreign = bool(record.flags & _flag("FOREIGN_IDS"))
    vip = Vip(
        protocol="tcp" if key.protocol == _PROTOCOLS["tcp"] else "udp",
        address=address.ipv4_mapped or address,
        port=int(key.port),
        v6only=bool(record.flags & _flag("V6ONLY")),
        flow=flow,
        spread=Spread(_name_of("spread", record.spread, "SPREAD_")),
        id_length=int(record.id_length),
        id_offset=int(record.id_offset),
        ids=IdSource.SOCKWAY if has_ids and not foreign else IdSource.ANY,
    )
    return PlacedVip(
        vip, int(record.group), int(record.index), bool(record.flags & _flag("MEMBER"))
    )


def _name_of(enum: str, value: int, prefix: str) -> str:
    return str(layout.types().enum(enum)(value).name).removeprefix(prefix).lower()
