"""Bringing a ledger into force in the maps that packets read, all of it or nothing.

The order is such that nothing points to what is not there yet: backends, rings, pools, VIPs; and
then, the other way round, what is not pointed to any more goes. What was there is kept until the
end, and put back if anything goes wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from sockway.balancer import layout, ledger, quicids, rings
from sockway.balancer.idtable import IdTable
from sockway.balancer.layout import IpAddress
from sockway.balancer.ledger import Ledger, PoolPlace
from sockway.balancer.nexthop import Found
from sockway.balancer.spec import BackendSpec, PoolSpec, VipSpec
from sockway.balancer.state import BalancerState
from sockway.balancer.viptable import VipKey, VipTable, VipValue

_NANOSECONDS = 1_000_000_000


def apply(state: BalancerState, before: Ledger, after: Ledger, ways: Found) -> None:
    """Bring `after` into force; the maps have room for it.

    Args:
        state: the maps.
        before: what is in force.
        after: what shall be.
        ways: the ways out to addresses; of backends that are not in it, the way stays as it is.

    """
    with _undo(state, before, after):
        _write_backends(state, before, after, ways)
        _write_ids(state, after)
        for name, place in after.pools.items():
            _write_pool(state, before, after, name, place, ways)
        if not _vips_are_there(before, after):
            _write_vips(state, before, after)
        _remove_pools(state, before, after)
        _forget_backends(state, after)
        ledger.write(state, after)


def unknown_ways(state: BalancerState, before: Ledger, after: Ledger) -> set[IpAddress]:
    """Addresses that the ways out must be asked for, to bring `after` into force.

    That is of what is new, or was not known before: asking for a route takes a millisecond.
    """
    resolved = layout.flag("backend_flag", "BACKEND_RESOLVED")
    old = _machines(before)
    here = {
        name
        for name, backend in old.items()
        if name in before.backends
        and before.backends[name] < len(state.backends)
        and state.backends[before.backends[name]].flags & resolved
    }
    found = set()
    for name, pool in after.spec.pool.items():
        known = before.spec.pool.get(name)
        same = (
            known is not None
            and known.model_copy(update={"backends": {}})
            == pool.model_copy(update={"backends": {}})
            and before.pools.get(name) == after.pools[name]
        )
        for member, backend in pool.backends.items():
            if not backend.local and not (
                same and member in here and old[member].address == backend.address
            ):
                found.add(backend.address)
    return found


def leaving_by(state: BalancerState, book: Ledger, ways: Found) -> set[int]:
    """Return the indices of devices that backends are reached by.

    Args:
        state: the maps.
        book: whose backends.
        ways: ways out that were asked for just now; of other addresses those in force are taken.

    """
    resolved = layout.flag("backend_flag", "BACKEND_RESOLVED")
    found = {way.ifindex for way in ways.values() if way is not None}
    for name, backend in _machines(book).items():
        number = book.backends[name]
        if backend.local or backend.address in ways or number >= len(state.backends):
            continue
        if state.backends[number].flags & resolved:
            found.add(int(state.backends[number].way.ifindex))
    return found


def write_ways(state: BalancerState, after: Ledger, ways: Found) -> int:
    """Write the ways out anew; how many changed."""
    changed, mtus = 0, _mtus(after)
    for name, backend in _machines(after).items():
        entry = state.backends[after.backends[name]]
        changed += _write_way(entry, backend, ways, mtus.get(name))
    return changed


def tick() -> int:
    """Now, as the packet path counts time."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> layout.limit("TICK_SHIFT")


@contextlib.contextmanager
def _undo(state: BalancerState, before: Ledger, after: Ledger) -> Iterator[None]:
    """Put back what was there if the block fails."""
    memories = (state.backends, state.pools, state.vips, state.ids)
    kept = [(memory, bytes(memory)) for memory in memories]
    limits = bytes(state.limits)
    settings, quic_ids = bytes(state.settings), bytes(state.quic_ids)
    old = {
        place.start: bytes(_ring_of(state, place))
        for name, place in after.pools.items()
        if before.pools.get(name) == place
    }
    try:
        yield
    except BaseException:
        for start, raw in old.items():
            _slots(state, start, len(raw) // 4)[:] = memoryview(raw).cast("I").tolist()
        kept += [(state.limits, limits), (state.settings, settings), (state.quic_ids, quic_ids)]
        for memory, raw in kept:
            ctypes.memmove(ctypes.addressof(memory), raw, len(raw))
        raise


def _machines(book: Ledger) -> dict[str, BackendSpec]:
    """Each backend once; its weight is that of one of its pools."""
    return {n: b for pool in book.spec.pool.values() for n, b in pool.backends.items()}


def _mtus(book: Ledger) -> dict[str, int]:
    """MTUs that pools give to backends' ways."""
    return {
        name: pool.mtu for pool in book.spec.pool.values() if pool.mtu for name in pool.backends
    }


def _write_backends(state: BalancerState, before: Ledger, book: Ledger, ways: Found) -> None:
    up, local = (
        layout.flag("backend_flag", "BACKEND_UP"),
        layout.flag("backend_flag", "BACKEND_LOCAL"),
    )
    mtus = _mtus(book)
    old, was_dead, dead = _machines(before), before.dead, book.dead
    for name, backend in _machines(book).items():
        if (
            old.get(name) == backend
            and before.backends.get(name) == book.backends[name]
            and backend.address not in ways
            and (name in was_dead) == (name in dead)
        ):
            continue
        entry = state.backends[book.backends[name]]
        entry.address[:] = layout.words(backend.address)
        entry.is_ipv4 = isinstance(backend.address, IPv4Address)
        entry.server_id = backend.server_id
        _write_way(entry, backend, ways, mtus.get(name))
        flags = entry.flags & ~(up | local)
        entry.flags = flags | (0 if name in dead else up) | (local if backend.local else 0)


def _write_way(entry: Any, backend: BackendSpec, ways: Found, mtu: int | None = None) -> bool:
    if backend.address not in ways and not backend.local:
        return False
    resolved = layout.flag("backend_flag", "BACKEND_RESOLVED")
    way = ways.get(backend.address)
    before = bytes(entry)
    if way is None or way.next_hop is None or backend.local:
        entry.flags &= ~resolved
    else:
        entry.way.next_hop[:] = way.next_hop
        entry.way.own[:] = way.own
        entry.way.ifindex = way.ifindex
        entry.flags |= resolved
    if mtu or way:
        entry.mtu = mtu or (way.mtu if way else 0)
    return bytes(entry) != before


def _write_pool(  # noqa: PLR0917
    state: BalancerState,
    before: Ledger,
    after: Ledger,
    name: str,
    place: PoolPlace,
    ways: Found,
) -> None:
    spec = after.spec.pool[name]
    entry = state.pools[place.number]
    is_new = before.pools.get(name) != place
    _write_source(entry, spec, ways)
    kinds = {"ip": "ENCAP_IP", "gue": "ENCAP_GUE"}
    entry.encapsulation = layout.flag("encapsulation", kinds[spec.encapsulation])
    entry.gue_port = layout.swapped(spec.gue_port)
    entry.ring = place.start
    weights, old = _weights(after, name), {} if is_new else _weights(before, name)
    if weights != old or is_new:
        if not is_new:
            now = tick()
            if entry.history_until < now:
                # These are of a change long ago, and must not count again.
                rings.settle(_ring_of(state, place), place.size)
            # Before the first slot changes: no packet may take one for settled.
            entry.history_until = max(entry.history_until, now + int(after.spec.history))
            entry.udp_until = now + int(after.spec.udp_window)
        _write_ring(state, after, place, weights, fresh=is_new)
    elif not before.numbers <= after.numbers and entry.history_until >= tick():
        # Somebody gets the number of who is gone, and would get the flows as well.
        rings.forget(_ring_of(state, place), _counted(after), place.size)
    entry.size = place.size


def _write_source(entry: Any, spec: PoolSpec, ways: Found) -> None:
    own = [way.source for b in spec.backends.values() if (way := ways.get(b.address))]
    source4 = spec.source4 or next(
        (IPv4Network(a) for a in own if isinstance(a, IPv4Address)), None
    )
    source6 = spec.source6 or next(
        (IPv6Network(a) for a in own if isinstance(a, IPv6Address)), None
    )
    if source4 is not None:
        entry.source4 = layout.words(source4.network_address)[3]
        entry.mask4 = layout.words(source4.netmask)[3]
    if source6 is not None:
        entry.source6[:] = layout.words(source6.network_address)
        entry.mask6 = layout.words(source6.netmask)[3]


def _weights(book: Ledger, name: str) -> dict[str, int]:
    """What the ring is built from; the dead and the drained get nothing."""
    pool = book.spec.pool.get(name)
    if pool is None:
        return {}
    idle = book.idle
    return {n: 0 if n in idle else b.weight for n, b in pool.backends.items()}


def _slots(state: BalancerState, start: int, size: int) -> Any:
    address = ctypes.addressof(state.slots) + 4 * start
    return (ctypes.c_uint32 * size).from_address(address)


def _ring_of(state: BalancerState, place: PoolPlace) -> Any:
    return _slots(state, place.start, place.size)


def _counted(book: Ledger) -> list[int]:
    """Numbers of backends that flows may belong to: alive, or leaving."""
    dead = book.dead
    alive = [number for name, number in book.backends.items() if name not in dead]
    return [*alive, *book.leaving]


def _write_ring(
    state: BalancerState, book: Ledger, place: PoolPlace, weights: Mapping[str, int], *, fresh: bool
) -> None:
    ring, names = rings.pool_ring(weights, place.size)
    slots = _ring_of(state, place)
    if fresh:  # what is there is of a pool that is gone
        ctypes.memset(ctypes.addressof(slots), 0, ctypes.sizeof(slots))
    numbers = [book.backends[name] for name in names]
    rings.write(slots, ring, numbers, _counted(book), place.size)


def _write_ids(state: BalancerState, book: Ledger) -> None:
    """Which server IDs count for which pools, and how packets carry them."""
    IdTable(state.ids, len(state.ids)).bring(book.ids)
    settings, stamp = state.settings, book.spec.stamp
    settings.tcp_kind = stamp.kind if stamp else 0
    settings.tcp_little_endian = bool(stamp and stamp.byte_order == "little")
    settings.tcp_experiment = layout.swapped(stamp.experiment or 0) if stamp else 0
    quicids.write(state.quic_ids, book.spec.quic_ids)


def _vips_are_there(before: Ledger, after: Ledger) -> bool:
    """Whether nothing that the VIP table and the limits are made of has changed."""
    return (
        before.spec.vip == after.spec.vip
        and before.spec.flows == after.spec.flows
        and before.indices == after.indices
        and all(before.pools.get(name) == place for name, place in after.pools.items())
    )


def _write_vips(state: BalancerState, before: Ledger, after: Ledger) -> None:
    table = VipTable(state.vips, len(state.vips))
    wanted: dict[VipKey, VipValue] = {}
    echo = layout.flag("balancer_vip_flag", "VIP_ECHO")
    for vip in after.spec.vip:
        key, value = _entry(state, after, vip)
        wanted[key] = value
        address = VipKey(vip.address, 0, 0)
        flags = wanted[address].flags if address in wanted else echo
        wanted[address] = VipValue(
            value.pool, after.indices[str(address)], flags if vip.echo else 0, value.flow_mask
        )
        _write_limit(state, vip, value.index)
    # Any-port look-ups begin before the first such VIP comes, and end after the last has gone.
    any_port = sum(1 for key in wanted if key.protocol and not key.port)
    state.settings.any_port = max(state.settings.any_port, any_port)
    for key, value in wanted.items():
        if table.get(key) != value:
            table.put(key, value)
    for key in ledger.vip_keys(before.spec):
        if key not in wanted:
            table.remove(key)
    state.settings.any_port = any_port


def _entry(state: BalancerState, book: Ledger, vip: VipSpec) -> tuple[VipKey, VipValue]:
    key = VipKey(vip.address, vip.port, vip.protocol)
    flags = layout.flag("balancer_vip_flag", "VIP_BY_SOURCE") if vip.hash == "source" else 0
    flags |= layout.flag("balancer_vip_flag", "VIP_STAMPED") if vip.stamps else 0
    mask = int(state.config.flow_mask)
    if vip.entries is not None:
        mask = min(mask, ledger.flow_buckets_within(vip.entries) - 1)
    pool = book.pools[vip.pool].number
    return key, VipValue(pool, book.indices[str(key)], flags, mask)


def _write_limit(state: BalancerState, vip: VipSpec, index: int) -> None:
    entry = state.limits[index]
    if vip.limit is None:
        entry.interval = 0
        return
    interval = _NANOSECONDS // vip.limit.rate
    entry.burst = interval * ((vip.limit.burst or vip.limit.rate) - 1)
    entry.interval = interval


def _remove_pools(state: BalancerState, before: Ledger, after: Ledger) -> None:
    kept = {place.number for place in after.pools.values()}
    for place in before.pools.values():
        if place.number not in kept:
            state.pools[place.number].size = 0


def _forget_backends(state: BalancerState, after: Ledger) -> None:
    """Backends that neither are nor may have flows do not get any."""
    known = after.numbers
    for number in range(1, len(state.backends)):
        if number not in known and state.backends[number].flags:
            state.backends[number].flags = 0


__all__ = ["apply", "leaving_by", "tick", "unknown_ways", "write_ways"]
