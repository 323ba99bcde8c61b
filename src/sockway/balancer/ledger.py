"""Which number stands for which name: what the control plane remembers of a balancer.

The packet path knows numbers: of pools, backends, counters, slots. The ledger says whose they are,
and which configuration is in force. It is kept in the map `notes`, as JSON, in two halves: a
change is written to the one that does not count, and comes into force with one store. So a process
that dies leaves a ledger that is whole, and the next one goes on from it.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

from sockway.balancer import layout
from sockway.balancer.idtable import IdKey, buckets_for
from sockway.balancer.modes import Choice
from sockway.balancer.spec import BalancerSpec
from sockway.balancer.state import BalancerState, Sizes
from sockway.balancer.viptable import VipKey
from sockway.errors import ConfigError

_SERIALS = (1 << 32) - 1
_REASON = 250
"""Characters of a reason that are kept."""
_BESIDE = 64
"""Octets of an interface's name, mode and MTU, and what is around them."""


@dataclass(frozen=True)
class PoolPlace:
    """Where a pool is in the maps."""

    number: int
    start: int
    """The slot of `rings` where its ring begins; a line's first."""
    size: int


@dataclass(frozen=True)
class Ledger:
    """Names and numbers of one configuration."""

    spec: BalancerSpec = field(default_factory=BalancerSpec)
    pools: dict[str, PoolPlace] = field(default_factory=dict)
    backends: dict[str, int] = field(default_factory=dict)
    leaving: dict[int, tuple[float, str]] = field(default_factory=dict)
    """Backends that are in no pool any more: until when (Unix time) flows may be theirs, name."""
    left: dict[str, dict[int, tuple[float, int]]] = field(default_factory=dict)
    """Server IDs of backends that were taken out of a pool, by pool: until when (Unix time) they
    count there, and the backend's number. It may be in other pools still."""
    down: frozenset[str] = frozenset()
    """Backends that were found dead."""
    drained: frozenset[str] = frozenset()
    """Backends that shall get no new flows, whatever their weight; they keep those they have."""
    failing: dict[str, Literal["move", "drain"]] = field(default_factory=dict)
    """Backends that health checks took out, and what becomes of their flows."""
    modes: dict[str, Choice] = field(default_factory=dict)
    """Where XDP runs on each interface, and why."""
    indices: dict[str, int] = field(default_factory=dict)
    """Counters' indices of VIPs and their addresses, by their keys as text."""

    def name_of(self, number: int) -> str | None:
        """Whose number this is, or was."""
        for name, held in self.backends.items():
            if held == number:
                return name
        return f"{self.leaving[number][1]} (leaving)" if number in self.leaving else None

    @property
    def dead(self) -> frozenset[str]:
        """Backends that get no packets at all."""
        return self.down | {name for name, how in self.failing.items() if how == "move"}

    @property
    def idle(self) -> frozenset[str]:
        """Backends that get no new flows, those that are dead among them."""
        return self.down | self.drained | self.failing.keys()

    def target(self, spec: BalancerSpec, now: float | None = None) -> Self:
        """The ledger of another configuration: what stays keeps its number."""
        now = time.time() if now is None else now
        names = {name for pool in spec.pool.values() for name in pool.backends}
        left = self._left_by(spec, now)
        times = sorted(each for ids in left.values() for each in ids.values())
        last = {number: until for until, number in times}
        leaving = dict(self.leaving)
        for name, number in self.backends.items():
            if name not in names:  # its number is kept as long as any ID leads to it
                leaving[number] = (max(now + spec.history, last.get(number, 0)), name)
        leaving = {number: each for number, each in leaving.items() if each[0] > now}
        backends = {name: n for name, n in self.backends.items() if name in names}
        for number, (_, name) in list(leaving.items()):
            if name in names and name not in backends:  # it comes back to what was its own
                backends[name] = number
                del leaving[number]
        # Nobody gets the number of one that goes: packets use it until all of it has changed.
        taken = {*self.backends.values(), *self.leaving, *backends.values()}
        most = layout.limit("BACKENDS")
        for name in sorted(names - set(backends)):
            backends[name] = _free(taken, 1)
            if backends[name] > most:
                raise ConfigError(f"there are more than {most} backends, those that leave included")
        return replace(
            self,
            spec=spec,
            pools=_placed(self.pools, spec),
            backends=backends,
            leaving=leaving,
            left=left,
            down=self.down & names,
            drained=self.drained & names,
            failing={name: how for name, how in self.failing.items() if name in names},
            indices=self._indices_for(spec),
        )

    def _left_by(self, spec: BalancerSpec, now: float) -> dict[str, dict[int, tuple[float, int]]]:
        """What `left` is with another configuration."""
        numbers = {name: number for number, (_, name) in self.leaving.items()} | self.backends
        owners = {
            backend.server_id: numbers.get(name)
            for pool in spec.pool.values()
            for name, backend in pool.backends.items()
        }
        found = {}
        for name, pool in spec.pool.items():
            ids = dict(self.left.get(name, {}))
            before = self.spec.pool[name].backends if name in self.spec.pool else {}
            for member, backend in before.items():
                if member not in pool.backends and backend.server_id:
                    ids[backend.server_id] = (now + spec.history, self.backends[member])
            members = {numbers.get(member) for member in pool.backends}
            found[name] = {
                server_id: (until, number)
                for server_id, (until, number) in ids.items()
                if until > now
                and number not in members  # one that is back has the ID that it has now
                and owners.get(server_id, number) == number
            }
        return {name: ids for name, ids in found.items() if ids}

    def is_over(self, now: float | None = None) -> bool:
        """Whether the time of something that left is over, so that `target` drops it."""
        now = time.time() if now is None else now
        times = [until for until, _ in self.leaving.values()]
        times += [until for ids in self.left.values() for until, _ in ids.values()]
        return min(times, default=now + 1) <= now

    @property
    def numbers(self) -> set[int]:
        """Numbers of backends that flows may belong to, the dead included."""
        return {*self.backends.values(), *self.leaving}

    @cached_property
    def ids(self) -> dict[IdKey, int]:
        """Which server IDs count for which pools, and the number of the backend they lead to."""
        found = {}
        for name, place in self.pools.items():
            for server_id, (_, number) in self.left.get(name, {}).items():
                found[IdKey(place.number, server_id)] = number
            for member, backend in self.spec.pool[name].backends.items():
                if backend.server_id:
                    found[IdKey(place.number, backend.server_id)] = self.backends[member]
        return found

    def _indices_for(self, spec: BalancerSpec) -> dict[str, int]:
        if spec.vip == self.spec.vip:
            return self.indices
        keys = {str(key) for key in vip_keys(spec)}
        indices = {key: index for key, index in self.indices.items() if key in keys}
        used = set(indices.values())
        for key in sorted(keys - set(indices)):
            indices[key] = _free(used, 1)
        return indices

    def sizes(self) -> Sizes:
        """How large maps must be for it, at the least."""
        # Modes are known for certain when all is attached: room for what is written then.
        text = len(self.dump()) + len(self.spec.interfaces) * (_REASON + _BESIDE)
        return Sizes(
            vips=max(self.indices.values(), default=0),
            pools=max((place.number for place in self.pools.values()), default=0) + 1,
            slots=max((place.start + place.size for place in self.pools.values()), default=1),
            backends=max(self.numbers, default=0),
            notes=-(-text // layout.LAYOUT.constant("note_limit", "NOTE_OCTETS")),
            flows=flow_buckets(self.spec.flows),
            ids=buckets_for(len(self.ids)),
        )

    def dump(self) -> bytes:
        """As JSON."""
        return self._dumped

    @cached_property
    def _dumped(self) -> bytes:
        return json.dumps(
            {
                "spec": self.spec.model_dump(mode="json"),
                "pools": {n: [p.number, p.start, p.size] for n, p in self.pools.items()},
                "backends": self.backends,
                "leaving": self.leaving,
                "left": self.left,
                "down": sorted(self.down),
                "drained": sorted(self.drained),
                "failing": self.failing,
                "indices": self.indices,
                "modes": {
                    n: [c.mode, c.reason[:_REASON], c.refused_mtu] for n, c in self.modes.items()
                },
            },
            separators=(",", ":"),
        ).encode()

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """From what `dump` gave."""
        data = json.loads(raw)
        return cls(
            spec=BalancerSpec.model_validate(data["spec"]),
            pools={name: PoolPlace(*place) for name, place in data["pools"].items()},
            backends=data["backends"],
            leaving={int(number): tuple(each) for number, each in data["leaving"].items()},
            left={
                pool: {int(server_id): tuple(each) for server_id, each in ids.items()}
                for pool, ids in data.get("left", {}).items()
            },
            down=frozenset(data["down"]),
            drained=frozenset(data.get("drained", ())),
            failing=data.get("failing", {}),
            indices=data["indices"],
            modes={name: Choice(name, *each) for name, each in data.get("modes", {}).items()},
        )


def read(state: BalancerState) -> Ledger:
    """The ledger in force."""
    serial, length = divmod(int(state.settings.notes), 1 << 32)
    if not length:
        return Ledger()
    start = (serial & 1) * _half(state)
    return Ledger.parse(state.maps["notes"].mmap_bytes()[start : start + length].tobytes())


def write(state: BalancerState, ledger: Ledger) -> None:
    """Bring a ledger into force; the maps have room for it."""
    raw = ledger.dump()
    serial = int(state.settings.notes >> 32) + 1 & _SERIALS
    memory: Any = state.maps["notes"].mmap(ctypes.c_char * (2 * _half(state)))
    start = (serial & 1) * _half(state)
    memory[start : start + len(raw)] = raw
    state.settings.notes = serial << 32 | len(raw)


def vip_keys(spec: BalancerSpec) -> Iterable[VipKey]:
    """All entries of the VIP table: of VIPs, and of their addresses."""
    keys: dict[VipKey, None] = {}
    for vip in spec.vip:
        keys[VipKey(vip.address, vip.port, vip.protocol)] = None
        keys[VipKey(vip.address, 0, 0)] = None
    return keys


def flow_buckets(flows: int) -> int:
    """Buckets of a connection table with so many places: a power of two."""
    ways = layout.LAYOUT.constant("flow_limit", "FLOW_WAYS")
    return 1 << max(0, (-(-flows // ways) - 1).bit_length())


def flow_buckets_within(flows: int) -> int:
    """The most buckets that hold no more than so many places; one at least."""
    ways = layout.LAYOUT.constant("flow_limit", "FLOW_WAYS")
    return 1 << max(0, (flows // ways).bit_length() - 1)


def _half(state: BalancerState) -> int:
    return state.sizes.notes * layout.LAYOUT.constant("note_limit", "NOTE_OCTETS")


def _free(taken: set[int], first: int) -> int:
    """The lowest number that is not taken; it is, afterwards."""
    number = first
    while number in taken:
        number += 1
    taken.add(number)
    return number


def _placed(before: dict[str, PoolPlace], spec: BalancerSpec) -> dict[str, PoolPlace]:
    """Places of all pools: those that keep their size stay where they are.

    Nobody gets the place of one that goes: packets use it until all VIPs have changed.
    """
    places = {
        name: place
        for name, place in before.items()
        if name in spec.pool and spec.pool[name].ring_size == place.size
    }
    taken = {place.number for place in before.values()}
    kept = list(before.values())
    for name, pool in spec.pool.items():
        if name not in places:
            start = _gap(kept, pool.ring_size)
            places[name] = PoolPlace(_free(taken, 0), start, pool.ring_size)
            kept.append(places[name])
    return places


def _gap(places: Iterable[PoolPlace], size: int) -> int:
    """Where a ring of this size fits, from a line's first slot on."""
    line = layout.LAYOUT.constant("ring_slot", "RING_LINE")
    start = 0
    for place in sorted(places, key=lambda place: place.start):
        if start + size <= place.start:
            return start
        start = -(-(place.start + place.size) // line) * line
    return start
