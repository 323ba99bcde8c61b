"""From a TOML file to a checked `BalancerSpec`.

Whatever is wrong becomes one `ConfigError` that names the file, the line and the field.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sockway.balancer.health.target import checked_pools, target_of
from sockway.balancer.profile import WAY
from sockway.balancer.spec import PROTOCOLS, BalancerSpec, PoolSpec
from sockway.errors import ConfigError
from sockway.places import line_of, written

Model = TypeVar("Model", bound=BaseModel)


def read_file(path: Path | str) -> BalancerSpec:
    """The configuration of a balancer in a TOML file.

    Raises:
        ConfigError: it names the file, the line, the field and what is allowed.

    """
    return read(text_of(path), str(path))


def text_of(path: Path | str) -> str:
    """What is in a file.

    Raises:
        ConfigError: it can't be read.

    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}", hint="name a TOML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="see https://toml.io") from None


def read(text: str, file: str = "configuration") -> BalancerSpec:
    """The configuration in a TOML text; `file` is what errors call it.

    Raises:
        ConfigError: as `read_file`.

    """
    spec = parse(BalancerSpec, text, file)
    for location, words, hint in (*_not_to_be_written(spec), *problems(spec)):
        raise ConfigError(f"{place(text, file, location)}: {words}", hint=hint)
    return spec


def parse(model: type[Model], text: str, file: str) -> Model:
    """A TOML text as a model.

    Raises:
        ConfigError: it names the file, the line, the field and what is allowed.

    """
    try:
        return model.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}", hint="see https://toml.io") from None
    except ValidationError as error:
        raise _explained(error, text, file) from None


def checked(model: type[Model], fields: Mapping[str, Any], what: str) -> Model:
    """Fields as a model; `what` is what errors call them.

    Raises:
        ConfigError: it names the field and what is allowed.

    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _explained(error, "", what) from None


def place(text: str, file: str, location: Sequence[str | int]) -> str:
    """File, line and field; the file alone if it is about all of it."""
    if not location:
        return file
    line = line_of(text, location)
    return f"{file}{f', line {line}' if line else ''}: {written(location)}"


def problems(spec: BalancerSpec) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """What a model of fields can't say: where, what is wrong, the way out."""
    seen: dict[str, int] = {}
    for index, vip in enumerate(spec.vip):
        where: tuple[str | int, ...] = ("vip", index)
        if vip.pool not in spec.pool:
            known = ", ".join(sorted(spec.pool)) or "none yet"
            yield (*where, "pool"), f"there is no pool {vip.pool!r}", f"pools are: {known}"
        if vip.listen in seen:
            yield (*where, "listen"), f"{vip.listen} is a VIP already", "name each VIP once"
        seen[vip.listen] = index
    yield from _backends(spec)
    yield from _mtus(spec)
    yield from _checks(spec)
    yield from _stamps(spec)


def _not_to_be_written(spec: BalancerSpec) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """What only those may say who fill in IDs from a registry."""
    if spec.registered is not None:
        yield ("registered",), "it is filled in from the registry", "leave it out"
    for pool_name, pool in spec.pool.items():
        for name, backend in pool.backends.items():
            where = ("pool", pool_name, "backends", name)
            if backend.id_of is not None and backend.server_id:
                yield where, "it has both id_of and server_id", "one of them says its server ID"
            elif backend.id_of is not None and spec.registry is None:
                yield where, "id_of names nothing: there is no registry", 'registry = "FILE"'


def _checks(spec: BalancerSpec) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """Pools with health checks that nothing could be asked by."""
    for name in checked_pools(spec):
        try:
            target_of(spec, name)
        except ConfigError as error:
            yield ("pool", name, "health"), error.message, error.hint or ""


def _stamps(spec: BalancerSpec) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """What stamps look like is said, and rotations are told apart by theirs."""
    for index, vip in enumerate(spec.vip):
        if vip.stamps and vip.protocol == PROTOCOLS["tcp"] and spec.stamp is None:
            yield (
                ("vip", index, "stamps"),
                "there is no [stamp] with the kind of TCP option that stamps are",
                f"in [stamp]: {WAY}",
            )
    taken: dict[int, int] = {}
    for index, each in enumerate(spec.quic_ids):
        other = next((taken[start] for start in sorted(each.starts) if start in taken), None)
        if other is not None:
            yield (
                ("quic_ids", index),
                f"its IDs begin as those of quic_ids[{other}] do",
                "one rotation each; mvfst-1 has 2 and 3, mvfst-2 4 and 5, mvfst-3 6 and 7",
            )
        taken |= dict.fromkeys(each.starts, index)


def _mtus(spec: BalancerSpec) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """IPv6 knows no path of less than 1,280 octets: nobody could be told to send less."""
    used = {vip.pool for vip in spec.vip if isinstance(vip.address, IPv6Address)}
    for name in sorted(used & spec.pool.keys()):
        pool = spec.pool[name]
        ends = {b.address.version for b in pool.backends.values() if not b.local}
        needed = max((1280 + headers_of(pool, version) for version in ends), default=0)
        if pool.mtu is not None and pool.mtu < needed:
            yield (
                ("pool", name, "mtu"),
                f"{pool.mtu} is too small for IPv6 in this tunnel",
                f"IPv6 needs 1280 octets and the tunnel's headers: {needed} or more",
            )


def headers_of(pool: PoolSpec, version: int) -> int:
    """Octets that a pool's tunnel to an address of this IP version puts around a packet."""
    return (20 if version == 4 else 40) + (8 if pool.encapsulation == "gue" else 0)  # noqa: PLR2004


def _backends(spec: BalancerSpec) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """A backend may be in several pools, but is one machine."""
    known: dict[str, tuple[object, ...]] = {}
    owners: dict[int, str] = {}
    for pool_name, pool in spec.pool.items():
        for name, backend in pool.backends.items():
            where = ("pool", pool_name, "backends", name)
            facts = (backend.address, backend.server_id, backend.id_of, backend.local)
            if known.setdefault(name, facts) != facts:
                yield (
                    where,
                    f"backend {name} has another address, server ID or place in another pool",
                    "a name stands for one machine: give them the same, or another name",
                )
            if backend.server_id and owners.setdefault(backend.server_id, name) != name:
                yield (
                    where,
                    f"server ID {backend.server_id} is that of {owners[backend.server_id]} already",
                    "give each backend a server ID of its own",
                )


def _explained(error: ValidationError, text: str, file: str) -> ConfigError:
    """The first thing that is wrong, in this project's words."""
    first = error.errors(include_url=False)[0]
    location = [part for part in first["loc"] if not _is_branch(part)]
    where = place(text, file, location)
    if first["type"] == "missing" and _is_kind(location):
        return ConfigError(f"{where} is missing", hint=WAY)
    if first["type"] == "missing":
        return ConfigError(f"{where} is missing", hint="every entry needs it")
    if first["type"] == "extra_forbidden":
        return ConfigError(
            f"{where} is not known", hint="see docs/reference/configuration.md for all fields"
        )
    allowed = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    value = first.get("input")
    if isinstance(value, dict) or location[-1:] in (["secret"], ["key"]):
        return ConfigError(f"{where} can't be used", hint=allowed)  # it has or is a secret
    shown = f"{value!r}"
    return ConfigError(f"{where} = {shown} can't be used", hint=allowed)


def _is_kind(location: list[str | int]) -> bool:
    """Whether it is a field for the kind of an option: there is more to say than that it lacks."""
    return location[-1] in {"server_kind", "client_kind"} or location[-2:] == ["stamp", "kind"]


def _is_branch(part: str | int) -> bool:
    """Whether a part of a location is pydantic's own: which type of a union it tried."""
    return isinstance(part, str) and (part.startswith(("IPv", "lax-")))


__all__ = ["checked", "headers_of", "parse", "place", "problems", "read", "read_file", "text_of"]
