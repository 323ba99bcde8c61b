"""Balancers and the registry: configurations brought into force with its IDs, and reported back.

The registry waits for a balancer from before it reads its IDs, so an ID that is given meanwhile is
told only when the balancer has it too. What was reported is looked at again by the balancer's
agent, each second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sockway.balancer import Balancer
from sockway.balancer.plan import Change
from sockway.balancer.spec import BalancerSpec, RegisteredSpec
from sockway.errors import NotFoundError, SockwayError, StateError
from sockway.fleet.entries import Entry
from sockway.fleet.registry import Registry
from sockway.fleet.resolving import (
    UnknownBackendError,
    backends_of,
    check_told,
    name_in_fleet,
    read_placed,
    resolve,
    resolve_read,
)
from sockway.fleet.store import Transaction


def in_force(name: str) -> BalancerSpec | None:
    """What a balancer of this network namespace has in force, if there is one."""
    try:
        with Balancer.existing(name) as balancer:
            return balancer.spec
    except NotFoundError:
        return None


def read_resolved(path: Path | str) -> BalancerSpec:
    """The configuration in a file, with the IDs of the registry that it names, if it does.

    Raises:
        ConfigError: it can't be used, or names backends that have no ID.
        StateError: the registry can't be used, or contradicts what is in force.

    """
    spec = read_placed(path)
    return resolve_read(spec, path, in_force(spec.name))


def bring(balancer: Balancer, spec: BalancerSpec, path: Path | str) -> list[Change]:
    """Bring what was read from a file (`read_placed`) into force, with the registry's IDs.

    Whoever calls it reports afterwards (`report`).

    Raises:
        ConfigError: it can't be used, or names backends that have no ID.
        StateError: the registry can't be used, or contradicts what is in force.

    """
    before = balancer.spec
    with _announced(spec):
        found = resolve_read(spec, path, before)
        with _withdrawn(before, found):
            return balancer.apply(found)


def report(balancer: Balancer, before: BalancerSpec | None = None) -> int | None:
    """Tell the registry what a balancer has in force; its revision, None if there is no registry.

    Args:
        balancer: that has it in force.
        before: what it had; a registry, or a name, that it left waits for it no more.

    Raises:
        StateError: the registry can't be told.

    """
    spec = balancer.spec
    try:
        if before is not None and _place(before) not in (None, _place(spec)):
            forget(before)
        return _tell(spec)
    except SockwayError as error:
        raise StateError(
            f"balancer {spec.name} has it in force, but the registry was not told: {error.message}",
            hint=f"{error.hint or 'see to the registry'}; then apply it again",
        ) from error


def learn(balancer: Balancer) -> int | None:
    """Bring the IDs of what is in force up to date; the revision, if the registry was told one.

    Raises:
        StateError: the registry can't be used, or is another one that lacks IDs in force.

    """
    spec = balancer.spec
    here = spec.registered
    if spec.registry is None or here is None:
        return None
    with Registry.open(spec.registry) as registry:
        revision, facts = registry.current(), registry.facts()
        known = {each.balancer: each for each in registry.reports()}.get(here.balancer)
    if (facts.registry, revision) != (here.registry, here.revision):
        balancer.apply(_followed(spec, here, facts.registry))
    elif (
        known is not None
        and known.revision == revision
        and known.carries == _carries(spec)
        and known.by_hand == _by_hand(spec)
    ):
        return None
    return report(balancer)


def forget(spec: BalancerSpec) -> None:
    """Tell the registry that a balancer is no more; nothing if it does not know it.

    Raises:
        StateError: the registry can't be told.

    """
    if spec.registry is not None and spec.registered is not None:
        with contextlib.suppress(NotFoundError), Registry.open(spec.registry) as registry:
            registry.forget_balancer(spec.registered.balancer)


def adopt(spec: BalancerSpec, registry: Registry) -> list[Entry]:
    """Take the IDs that a balancer has in force into a registry, all or nothing; the new ones.

    Raises:
        StateError: an ID is another backend's here, or a backend has another one.

    """
    ids = {
        backend.id_of or name: backend.server_id
        for _, _, name, backend in backends_of(spec)
        if backend.server_id
    }
    known = spec.registered
    same = known is not None and known.registry == registry.facts().registry
    return registry.adopt(ids, (known.revision, known.token) if known and same else None)


def _followed(spec: BalancerSpec, here: RegisteredSpec, registry: str) -> BalancerSpec:
    """What is in force, with the registry's IDs of now.

    A registry of another name took the file's place. It is followed if it has all IDs in force:
    else clients' packets would lose their way.
    """
    if registry == here.registry:
        return resolve(spec, spec, lenient=True)
    try:
        return resolve(spec, spec)
    except UnknownBackendError as error:
        raise StateError(
            f"{spec.registry} is another registry than balancer {spec.name} has IDs of: "
            f"{error.message}",
            hint=f"IDs in force stay as they are; `sockway ids adopt --name {spec.name}` takes "
            "them in",
        ) from None


@contextmanager
def _announced(spec: BalancerSpec) -> Iterator[None]:
    """Have the registry wait for a balancer that it does not know yet, until it reports."""
    if spec.registry is None:
        yield
        return
    name = name_in_fleet(spec)
    with Registry.open(spec.registry) as registry:
        is_new = registry.announce(name)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(SockwayError), Registry.open(spec.registry) as registry:
                registry.forget_balancer(name)
        raise


@contextmanager
def _withdrawn(before: BalancerSpec, after: BalancerSpec) -> Iterator[None]:
    """Say first what a balancer will carry no more, so that nobody begins to tell it meanwhile."""
    here, carried, coming = before.registered, _carries(before), _carries(after)
    kept = {
        vip: tuple(name for name in names if name in coming.get(vip, ()))
        for vip, names in carried.items()
    }
    if before.registry is None or here is None or kept == carried:
        yield
        return

    def withdrawing(work: Transaction) -> None:
        check_told(before, after, work)
        for known in work.reports():
            if known.balancer == here.balancer:
                work.put_report(replace(known, carries=kept))

    with contextlib.suppress(NotFoundError), Registry.open(before.registry) as registry:
        registry.rewrite(withdrawing)
    try:
        yield
    except BaseException:
        with contextlib.suppress(SockwayError):
            _tell(before)
        raise


def _tell(spec: BalancerSpec) -> int | None:
    here = spec.registered
    if spec.registry is None or here is None:
        return None
    with Registry.open(spec.registry) as registry:
        registry.report(
            here.balancer, here.revision, _carries(spec), by_hand=_by_hand(spec),
            of=(here.registry, here.token),
        )  # fmt: skip
    return here.revision


def _place(spec: BalancerSpec) -> tuple[Path, str] | None:
    """The registry, and what the balancer is called there."""
    if spec.registry is None or spec.registered is None:
        return None
    return spec.registry, spec.registered.balancer


def _carries(spec: BalancerSpec) -> dict[str, tuple[str, ...]]:
    """Names in the registry of backends whose IDs lead to them, by VIP."""
    found: dict[str, set[str]] = {vip.listen: set() for vip in spec.vip if vip.stamps}
    for pool, _, _, backend in backends_of(spec):
        if backend.id_of is not None and backend.server_id:
            for vip in spec.vip:
                if vip.stamps and vip.pool == pool:
                    found[vip.listen].add(backend.id_of)
    return {vip: tuple(sorted(names)) for vip, names in found.items()}


def _by_hand(spec: BalancerSpec) -> Mapping[str, int]:
    """Backends whose IDs are written in the file."""
    return {
        name: backend.server_id
        for _, _, name, backend in backends_of(spec)
        if backend.id_of is None and backend.server_id
    }


__all__ = ["adopt", "bring", "forget", "in_force", "learn", "read_resolved", "report"]
