"""A balancer's configuration with the server IDs of the registry in it.

The balancer's own layer knows numbers only. Whoever applies a configuration takes them from the
registry first. What would lose connections is refused here: a backend whose ID would be another
one, an ID that is still told and would be known no more, a registry that is an older copy.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from sockway.balancer.config import place, read_file, text_of
from sockway.balancer.spec import BackendSpec, BalancerSpec, PoolSpec, RegisteredSpec
from sockway.errors import ConfigError, NotFoundError, StateError
from sockway.fleet.registry import Registry
from sockway.fleet.store import View
from sockway.kernel import current_netns_cookie
from sockway.places import written
from sockway.wire.mvfst import LAYOUTS

_QUARANTINED = 0
"""Instead of an ID: balancers have forgotten it."""


def read_placed(path: Path | str) -> BalancerSpec:
    """The configuration in a file; a registry's path is relative to the file.

    Raises:
        ConfigError: it can't be used.

    """
    spec = read_file(path)
    if spec.registry is None:
        return spec
    return spec.model_copy(update={"registry": Path(path).absolute().parent / spec.registry})


def resolve_read(
    spec: BalancerSpec, path: Path | str, before: BalancerSpec | None = None
) -> BalancerSpec:
    """What was read from a file, with the IDs of its registry; errors say where in the file.

    Raises:
        ConfigError: it names backends that have no ID.
        StateError: the registry can't be used, or contradicts what is in force.

    """
    try:
        return resolve(spec, before)
    except UnknownBackendError as error:
        where = place(text_of(path), str(path), error.location)
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None


def resolve(
    spec: BalancerSpec, before: BalancerSpec | None = None, *, lenient: bool = False
) -> BalancerSpec:
    """A configuration with the IDs of the registry that it names; as it is if it names none.

    Args:
        spec: as it was read, or as it is in force: then its IDs are brought up to date.
        before: what is in force.
        lenient: backends that the registry does not know keep the IDs that they have, and are no
            error.

    Raises:
        UnknownBackendError: a backend has no ID.
        StateError: the registry can't be used, or contradicts what is in force.

    """
    if spec.registry is None:
        _check_lengths(spec)
        if before is not None and before.registry is not None:
            _check_left(spec, before, before.registry)
        return spec
    with Registry.open(spec.registry) as registry:
        registry.current()  # what time alone has changed

        def resolving(view: View) -> BalancerSpec:
            if before is not None:
                _check_lineage(spec, before, view)
            found = _with_ids(spec, view, lenient=lenient)
            if before is not None:
                _check_same(before, found, view)
                check_told(before, found, view)
            return found

        found = registry.read(resolving)
    _check_lengths(found)
    return found


def name_in_fleet(spec: BalancerSpec) -> str:
    """What a balancer is called in the registry: its host and name, unless it says otherwise.

    In a network namespace of its own it has the namespace's number too: there may be one of its
    name in each.
    """
    if spec.registry_as is not None:
        return spec.registry_as
    own, first = Path("/proc/thread-self/ns/net"), Path("/proc/1/ns/net")
    try:
        is_first = os.path.samestat(own.stat(), first.stat())
    except OSError:
        is_first = True
    return f"{socket.gethostname()}/{spec.name}{'' if is_first else f'@{current_netns_cookie()}'}"


class UnknownBackendError(ConfigError):
    """A backend that a configuration names has no ID in the registry."""

    def __init__(self, location: tuple[str | int, ...], message: str, hint: str) -> None:
        """Say where."""
        super().__init__(message, hint=hint)
        self.location = location


def backends_of(spec: BalancerSpec) -> Iterator[tuple[str, PoolSpec, str, BackendSpec]]:
    """All backends, with the names of their pools and theirs."""
    for pool_name, pool in spec.pool.items():
        for name, backend in pool.backends.items():
            yield pool_name, pool, name, backend


def _with_ids(spec: BalancerSpec, view: View, *, lenient: bool) -> BalancerSpec:
    entries = view.entries()
    numbers = {e.name: _QUARANTINED for e in entries if e.state == "quarantined"}
    numbers |= {e.name: e.server_id for e in entries if e.state != "quarantined"}
    owners = {entry.server_id: entry for entry in entries}
    unknown: list[tuple[str, str, str]] = []
    pools: dict[str, PoolSpec] = {}
    for pool_name, pool, name, backend in backends_of(spec):
        if backend.id_of is None and "server_id" in backend.model_fields_set:
            owner = owners.get(backend.server_id)
            if owner is not None and owner.name != name:
                raise UnknownBackendError(
                    ("pool", pool_name, "backends", name),
                    f"server ID {backend.server_id} is that of {owner.name} in the registry",
                    "leave server_id out, or take another one",
                )
            found = backend
        else:
            known_as = backend.id_of or name
            if known_as not in numbers and not lenient:
                unknown.append((pool_name, name, known_as))
            number = numbers.get(known_as)
            if number is None:
                owner = owners.get(backend.server_id)
                number = backend.server_id if owner is None or owner.name == known_as else 0
            found = backend.model_copy(update={"server_id": number, "id_of": known_as})
        here = pools.get(pool_name, pool)
        pools[pool_name] = here.model_copy(update={"backends": {**here.backends, name: found}})
    if unknown:
        pool_name, name, known_as = unknown[0]
        names = list(dict.fromkeys(each[2] for each in unknown))
        raise UnknownBackendError(
            ("pool", pool_name, "backends", name),
            f"no server ID of {', '.join(names)} is in the registry",
            f"`sockway ids assign {' '.join(names)}`, or server_id = 0 for none",
        )
    facts = view.facts()
    registered = RegisteredSpec(
        registry=facts.registry,
        revision=facts.revision,
        token=view.token(facts.revision) or "",
        balancer=name_in_fleet(spec),
    )
    return spec.model_copy(update={"pool": {**spec.pool, **pools}, "registered": registered})


def _check_lineage(spec: BalancerSpec, before: BalancerSpec, view: View) -> None:
    """A registry that does not know what was taken from it is an older copy of itself."""
    here = before.registered
    if (
        here is not None
        and here.registry == view.facts().registry
        and here.revision
        and not view.knows(here.revision, here.token)
    ):
        raise StateError(
            f"{spec.registry} does not know its own revision {here.revision}, which balancer "
            f"{spec.name} has in force: it was restored from an older copy",
            hint=f"`sockway ids adopt --name {spec.name}` here and on the other balancers takes in "
            "what they have",
        )


def _check_same(before: BalancerSpec, after: BalancerSpec, view: View) -> None:
    """IDs that are in force may be in clients' packets: a backend keeps its own."""
    numbers = {name: b.server_id for _, _, name, b in backends_of(after) if b.id_of is not None}
    same = before.registered and before.registered.registry == view.facts().registry
    for pool_name, _, name, old in backends_of(before):
        new = numbers.get(name)
        if not old.server_id or new is None or new == old.server_id:
            continue
        entry = view.numbered(old.server_id)
        if entry is not None and entry.name == (old.id_of or name):
            continue  # it was retired and is drained
        if same:
            continue  # so long ago that it is free again
        raise StateError(
            f"{written(('pool', pool_name, 'backends', name))} has server ID {old.server_id} in "
            f"force, and {new or 'none'} in the registry: its connections would be lost",
            hint=f"`sockway ids adopt --name {before.name}` takes in what is in force, before "
            "others are assigned",
        )


def check_told(before: BalancerSpec, after: BalancerSpec, view: View) -> None:
    """An ID that is told must go on to lead to its backend, at each VIP that is still served.

    Raises:
        StateError: one would not.

    """
    served = {vip.listen for vip in after.vip}
    kept = _ids_by_vip(after)
    for vip, ids in _ids_by_vip(before).items():
        for number in sorted(ids - kept.get(vip, set())) if vip in served else ():
            entry = view.numbered(number)
            if entry is not None and entry.tellers:
                raise StateError(
                    f"server ID {number} of {entry.name} would lead nowhere at {vip}, and is still "
                    f"told by {', '.join(entry.tellers)}",
                    hint="end that first (`sockway stamp down` there, `sockway ids env "
                    f"{entry.name} --stop` for QUIC servers); if it is gone, `sockway ids retire "
                    f"{entry.name} --force`",
                )


def _check_left(spec: BalancerSpec, before: BalancerSpec, registry: Path) -> None:
    """The same, for a configuration that has left the registry, if that is still there."""
    with contextlib.suppress(NotFoundError), Registry.open(registry) as opened:
        opened.read(lambda view: check_told(before, spec, view))


def _ids_by_vip(spec: BalancerSpec) -> dict[str, set[int]]:
    pools = {
        name: {backend.server_id for backend in pool.backends.values()} - {0}
        for name, pool in spec.pool.items()
    }
    found: dict[str, set[int]] = {}
    for vip in spec.vip:
        if vip.stamps:
            found.setdefault(vip.listen, set()).update(pools.get(vip.pool, ()))
    return found


def _check_lengths(spec: BalancerSpec) -> None:
    """IDs must fit into all connection IDs that carry them."""
    pools = {vip.pool for vip in spec.vip if vip.stamps and vip.listen.startswith("udp")}
    for index, each in enumerate(spec.quic_ids):
        own = each.layout == "quic-lb"
        bits = 8 * each.server_id_length if own else LAYOUTS[int(each.layout[-1])].bits
        for pool, _, name, backend in backends_of(spec):
            if pool in pools and backend.server_id >> bits:
                raise ConfigError(
                    f"server ID {backend.server_id} of {name} does not fit into the {bits} bits of "
                    f"quic_ids[{index}]",
                    hint=f"a longer server_id_length, or a smaller ID (of a registry: `sockway ids "
                    f"configure --bits {bits}` before IDs are assigned)",
                )


__all__ = [
    "UnknownBackendError",
    "backends_of",
    "check_told",
    "name_in_fleet",
    "read_placed",
    "resolve",
    "resolve_read",
]
