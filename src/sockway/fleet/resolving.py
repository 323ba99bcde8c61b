"""A balancer's configuration with the server IDs of the registry in it, and what it reports back.

The balancer's own layer knows numbers only. Whoever applies a configuration takes them from the
registry first (`resolve`), and tells it afterwards what is in force (`report`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from sockway.balancer import Balancer
from sockway.balancer.config import place, read_file, text_of
from sockway.balancer.spec import BackendSpec, BalancerSpec, PoolSpec, RegisteredSpec
from sockway.errors import ConfigError, NotFoundError, SockwayError, StateError
from sockway.fleet.entries import Entry
from sockway.fleet.registry import Registry
from sockway.fleet.store import View
from sockway.kernel import current_netns_cookie
from sockway.places import written
from sockway.wire.mvfst import LAYOUTS

_QUARANTINED = 0
"""Instead of an ID: balancers have forgotten it."""


def read_resolved(path: Path | str) -> BalancerSpec:
    """The configuration in a file, with the IDs of the registry that it names, if it does.

    Raises:
        ConfigError: it can't be used, or names backends that have no ID.
        StateError: the registry can't be used, or contradicts what is in force.

    """
    spec = read_file(path)
    try:
        return resolve(spec, in_force(spec.name))
    except UnknownBackendError as error:
        where = place(text_of(path), str(path), error.location)
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None


def in_force(name: str) -> BalancerSpec | None:
    """What a balancer of this network namespace has in force, if there is one."""
    try:
        with Balancer.existing(name) as balancer:
            return balancer.spec
    except NotFoundError:
        return None


def resolve(
    spec: BalancerSpec, before: BalancerSpec | None = None, *, lenient: bool = False
) -> BalancerSpec:
    """A configuration with the IDs of the registry that it names; as it is if it names none.

    Args:
        spec: as it was read, or as it is in force: then its IDs are brought up to date.
        before: what is in force.
        lenient: backends that the registry does not know have no ID, and are no error.

    Raises:
        UnknownBackendError: a backend has no ID.
        StateError: the registry can't be used, or contradicts what is in force.

    """
    if spec.registry is None:
        return spec
    with Registry.open(spec.registry) as registry:
        registry.current()  # what time alone has changed

        def resolving(view: View) -> BalancerSpec:
            if before is not None:
                _check_lineage(spec, before, view)
            found = _with_ids(spec, view, lenient=lenient)
            if before is not None:
                _check_same(before, found, view)
            return found

        found = registry.read(resolving)
    _check_lengths(found)
    return found


def report(spec: BalancerSpec) -> int | None:
    """Tell the registry that a resolved configuration is in force; its revision.

    Raises:
        StateError: the registry can't be told.

    """
    if spec.registry is None or spec.registered is None:
        return None
    carries = {
        backend.id_of
        for pool in spec.pool.values()
        for backend in pool.backends.values()
        if backend.id_of is not None and backend.server_id
    }
    try:
        with Registry.open(spec.registry) as registry:
            registry.report(spec.registered.balancer, spec.registered.revision, carries)
    except SockwayError as error:
        raise StateError(
            f"balancer {spec.name} has it in force, but the registry was not told: {error.message}",
            hint=f"{error.hint or 'see to the registry'}; then apply it again",
        ) from error
    return spec.registered.revision


def forget(spec: BalancerSpec) -> None:
    """Tell the registry that a balancer is no more; nothing if it does not know it.

    Raises:
        StateError: the registry can't be told.

    """
    if spec.registry is not None and spec.registered is not None:
        try:
            with Registry.open(spec.registry) as registry:
                registry.forget_balancer(spec.registered.balancer)
        except NotFoundError:
            return


def adopt(spec: BalancerSpec, registry: Registry) -> list[Entry]:
    """Take the IDs that a balancer has in force into a registry, all or nothing; the new ones.

    Raises:
        StateError: an ID is another backend's here, or a backend has another one.

    """
    ids = {
        backend.id_of or name: backend.server_id
        for pool in spec.pool.values()
        for name, backend in pool.backends.items()
        if backend.server_id
    }
    known = spec.registered
    same = known is not None and known.registry == registry.facts().registry
    return registry.adopt(ids, (known.revision, known.token) if known and same else None)


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


def _backends(spec: BalancerSpec) -> Iterator[tuple[str, PoolSpec, str, BackendSpec]]:
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
    for pool_name, pool, name, backend in _backends(spec):
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
            fields = {"server_id": numbers.get(known_as, 0), "id_of": known_as}
            found = backend.model_copy(update=fields)
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
    numbers = {name: b.server_id for _, _, name, b in _backends(after) if b.id_of is not None}
    for pool_name, _, name, old in _backends(before):
        new = numbers.get(name, 0)
        if not old.server_id or not new or new == old.server_id:
            continue
        entry = view.numbered(old.server_id)
        if entry is not None and entry.name == (old.id_of or name):
            continue  # it was retired and is drained
        if before.registered and before.registered.registry == view.facts().registry:
            continue  # so long ago that it is free again
        raise StateError(
            f"{written(('pool', pool_name, 'backends', name))} has server ID {old.server_id} in "
            f"force, and {new} in the registry: its connections would be lost",
            hint=f"`sockway ids adopt --name {before.name}` takes in what is in force, before "
            "others are assigned",
        )


def _check_lengths(spec: BalancerSpec) -> None:
    """IDs must fit into all connection IDs that carry them."""
    if not any(vip.stamps and vip.listen.startswith("udp") for vip in spec.vip):
        return
    for index, each in enumerate(spec.quic_ids):
        own = each.layout == "quic-lb"
        bits = 8 * each.server_id_length if own else LAYOUTS[int(each.layout[-1])].bits
        for _, _, name, backend in _backends(spec):
            if backend.id_of is not None and backend.server_id >> bits:
                raise ConfigError(
                    f"server ID {backend.server_id} of {name} does not fit into the {bits} bits of "
                    f"quic_ids[{index}]",
                    hint=f"`sockway ids configure --bits {bits}` before IDs are assigned, or a "
                    "longer server_id_length",
                )


__all__ = [
    "UnknownBackendError",
    "adopt",
    "forget",
    "in_force",
    "name_in_fleet",
    "read_resolved",
    "report",
    "resolve",
]
