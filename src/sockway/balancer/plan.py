"""What would change from one configuration to another, for people to read and scripts to use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sockway.balancer.spec import BalancerSpec, PoolSpec, VipSpec

_SECRETS = {"secret", "key"}


@dataclass(frozen=True)
class Change:
    """One difference."""

    kind: Literal["add", "remove", "change"]
    what: str
    """`vip tcp://192.0.2.1:443`, `pool web`, `pool web, backend web1`, `balancer`."""
    field: str | None = None
    before: Any = None
    after: Any = None

    def __str__(self) -> str:
        """As a line of a diff."""
        sign = {"add": "+", "remove": "-", "change": "~"}[self.kind]
        if self.field is None:
            detail = f": {self.after}" if self.after is not None else ""
            return f"{sign} {self.what}{detail}"
        return f"{sign} {self.what}: {self.field} {_shown(self.before)} -> {_shown(self.after)}"

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def changes(before: BalancerSpec, after: BalancerSpec) -> list[Change]:
    """All differences, in the order in which people look for them."""
    found = list(_fields("balancer", before, after, {"pool", "vip", "quic_ids", "registered"}))
    found.extend(_quic_ids(before, after))
    for name in sorted({*before.pool, *after.pool}):
        found.extend(_pool(name, before.pool.get(name), after.pool.get(name)))
    vips = {vip.listen: vip for vip in before.vip}
    wanted = {vip.listen: vip for vip in after.vip}
    for listen in sorted({*vips, *wanted}):
        found.extend(_vip(listen, vips.get(listen), wanted.get(listen)))
    return found


def _quic_ids(before: BalancerSpec, after: BalancerSpec) -> Iterator[Change]:
    old, new = ({each.name: each for each in spec.quic_ids} for spec in (before, after))
    for name in sorted({*old, *new}):
        what = f"quic_ids, {name}"
        if name not in old or name not in new:
            yield Change("remove" if name in old else "add", what)
        else:
            yield from _fields(what, old[name], new[name], set())


def _pool(name: str, before: PoolSpec | None, after: PoolSpec | None) -> Iterator[Change]:
    what = f"pool {name}"
    if before is None:
        yield Change("add", what)
        before = PoolSpec(backends={})
    elif after is None:
        yield Change("remove", what)
        return
    if after is None:
        return
    yield from _fields(what, before, after, {"backends"})
    for backend in sorted({*before.backends, *after.backends}):
        old, new = before.backends.get(backend), after.backends.get(backend)
        part = f"{what}, backend {backend}"
        if old is None and new is not None:
            yield Change("add", part, after=f"{new.address}, weight {new.weight}")
        elif new is None:
            yield Change("remove", part)
        elif old is not None:
            yield from _fields(part, old, new, set())


def _vip(listen: str, before: VipSpec | None, after: VipSpec | None) -> Iterator[Change]:
    what = f"vip {listen}"
    if before is None and after is not None:
        yield Change("add", what, after=f"pool {after.pool}")
    elif after is None:
        yield Change("remove", what)
    elif before is not None:
        yield from _fields(what, before, after, {"listen"})


def _fields(what: str, before: Any, after: Any, but: set[str]) -> Iterator[Change]:
    for name in type(after).model_fields:
        if name not in but and getattr(before, name) != getattr(after, name):
            old, new = getattr(before, name), getattr(after, name)
            if name in _SECRETS:
                old, new = (None if each is None else "(hidden)" for each in (old, new))
            yield Change("change", what, name, _plain(old), _plain(new))


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, (str, int, float, list, dict, type(None))):
        return value
    return str(value)


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


__all__ = ["Change", "changes"]
