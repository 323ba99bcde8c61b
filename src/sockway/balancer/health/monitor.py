"""All checks of a balancer, each at its own pace, and what is done about their results."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sockway.balancer.health.checks import CheckError, check
from sockway.balancer.health.decision import PoolHealth, taken_out
from sockway.balancer.health.spec import HealthSpec
from sockway.balancer.health.target import checked_pools, target_of
from sockway.balancer.health.tunnel import CheckTunnel, Path, source_of
from sockway.balancer.nexthop import Found, WayOut
from sockway.balancer.spec import BackendSpec, BalancerSpec, PoolSpec
from sockway.errors import ConfigError

JITTER: Final = 0.1
"""Part of an interval that it varies by, so that checks do not come in step."""
_NUMBERS: Final = 65_535
"""That a mark has room for."""

Remedy = Literal["move", "drain"]
Tell = Callable[[dict[str, Any]], None]


@dataclass
class _Pool:
    spec: PoolSpec
    check: HealthSpec
    target: tuple[str, int]
    health: PoolHealth
    paths: dict[str, Path] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)


class HealthMonitor:
    """Runs checks in the running loop; `on_change` is called with all backends to take out."""

    def __init__(self, on_change: Callable[[Mapping[str, Remedy]], None], tell: Tell) -> None:
        """Nothing is checked yet; see `follow`.

        Args:
            on_change: gets the backends that shall be out, and how, when that has changed.
            tell: gets each change of a backend, for people.

        """
        self._on_change = on_change
        self._tell = tell
        self._pools: dict[str, _Pool] = {}
        self._tunnel: CheckTunnel | None = None
        self._mark = 0
        self._numbers: dict[tuple[str, str], int] = {}
        """Of pool and backend, in marks. Nobody else gets one while a check may be under way."""
        self._last = 0
        self._out: Mapping[str, Remedy] = {}

    def follow(
        self,
        spec: BalancerSpec,
        ways: Found,
        failing: Mapping[str, Remedy],
        idle: Iterable[str] = (),
    ) -> None:
        """Check what this configuration says, from now on.

        Args:
            spec: the configuration in force.
            ways: the ways out to all backends.
            failing: backends that are out already, by whoever checked before.
            idle: backends that operators keep new flows from. They are checked, but no reserve.

        Raises:
            ConfigError: a pool has no VIP that its check could ask.
            KernelError: the kernel refused the program of the checks' tunnel.

        """
        if not self._pools:
            self._out = dict(failing)
        wanted = checked_pools(spec)
        targets = {name: target_of(spec, name) for name in wanted}
        aside = frozenset(idle)
        for name in self._pools.keys() - wanted.keys():
            self._stop(self._pools.pop(name))
        for name, check_spec in wanted.items():
            members = spec.pool[name].backends
            pool = self._pool(name, spec.pool[name], check_spec, targets[name])
            drained = {name for name, backend in members.items() if not backend.weight}
            pool.health.keep(members, failing, aside | drained)
            for gone in pool.tasks.keys() - members.keys():
                pool.tasks.pop(gone).cancel()
        self._lead(ways, spec)
        for checked in self._pools.values():
            self._start(checked)
        self._decide()

    def ways_changed(self, ways: Found, spec: BalancerSpec) -> None:
        """The ways out are others now.

        Raises:
            KernelError: an interface is gone meanwhile; the next look knows more.

        """
        self._lead(ways, spec)

    def report(self) -> dict[str, list[dict[str, Any]]]:
        """What is known of each backend, by pool."""
        out = self._taken_out()
        return {
            name: [
                {
                    "name": backend,
                    "up": judgement.up,
                    "reason": judgement.reason,
                    "latency": judgement.latency,
                    "kept": judgement.up is False and backend not in out,
                }
                for backend, judgement in sorted(pool.health.judgements.items())
            ]
            for name, pool in self._pools.items()
        }

    async def close(self) -> None:
        """End all checks; what is out stays out."""
        tasks = [task for pool in self._pools.values() for task in pool.tasks.values()]
        for pool in self._pools.values():
            self._stop(pool)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pools.clear()
        self._close_tunnel()

    def _close_tunnel(self) -> None:
        if self._tunnel is not None:
            self._tunnel.close()
            self._tunnel = None

    def _pool(self, name: str, spec: PoolSpec, check: HealthSpec, target: tuple[str, int]) -> _Pool:
        """A pool with this check: what was found of it stays true until it is found otherwise."""
        held = self._pools.get(name)
        if held is None:
            health = PoolHealth(check.rise, check.fall, check.max_down)
            held = self._pools[name] = _Pool(spec, check, target, health)
        elif held.check != check or held.target != target:
            self._stop(held)
            held.check, held.target = check, target
            held.health.rise, held.health.fall = check.rise, check.fall
            held.health.max_down = check.max_down
        held.spec = spec
        return held

    def _lead(self, ways: Found, spec: BalancerSpec) -> None:
        """Give the tunnel the paths of all checks."""
        if not self._pools or spec.mark != self._mark:
            self._close_tunnel()
        self._number()
        if not self._pools:
            return
        if self._tunnel is None:
            self._tunnel = CheckTunnel.open(spec.mark, spec.name)
            self._mark = spec.mark
        paths = []
        for name, pool in self._pools.items():
            pool.paths = {}
            for backend in pool.health.judgements:
                way = ways.get(pool.spec.backends[backend].address)
                number = self._numbers[name, backend]
                path = _path(number, pool.spec.backends[backend], pool.spec, way)
                if path is not None:
                    pool.paths[backend] = path
                    paths.append(path)
        self._tunnel.lead(paths)

    def _number(self) -> None:
        """Have a number for each backend of each pool."""
        wanted = {
            (n, backend) for n, pool in self._pools.items() for backend in pool.health.judgements
        }
        if len(wanted) > _NUMBERS:
            raise ConfigError(
                f"there are {len(wanted)} backends to check, and marks have room for {_NUMBERS}",
                hint="check fewer pools",
            )
        self._numbers = {key: n for key, n in self._numbers.items() if key in wanted}
        taken = set(self._numbers.values())
        for key in sorted(wanted - self._numbers.keys()):
            # The one that was not used for the longest time: late packets may bear the last.
            self._last = self._last % _NUMBERS + 1
            while self._last in taken:
                self._last = self._last % _NUMBERS + 1
            self._numbers[key] = self._last
            taken.add(self._last)

    def _start(self, pool: _Pool) -> None:
        for backend in pool.health.judgements.keys() - pool.tasks.keys():
            pool.tasks[backend] = asyncio.get_running_loop().create_task(
                self._check_on(pool, backend)
            )

    def _stop(self, pool: _Pool) -> None:
        for task in pool.tasks.values():
            task.cancel()
        pool.tasks.clear()

    async def _check_on(self, pool: _Pool, backend: str) -> None:
        """Check one backend again and again."""
        chance = random.Random()  # noqa: S311 - nothing hangs on it
        # Not all of them in the first moment.
        await asyncio.sleep(chance.random() * min(pool.check.interval, 1.0) / 2)
        while True:
            began = time.monotonic()
            reason = await self._once(pool, backend)
            changed = pool.health.add(backend, reason, time.monotonic() - began)
            if changed:
                state = {"step": "backend_fails" if reason else "backend_is_up"}
                self._tell(state | {"backend": backend} | ({"reason": reason} if reason else {}))
                self._decide()
            pause = pool.check.interval * (1 + JITTER * (2 * chance.random() - 1))
            await asyncio.sleep(max(0.0, pause - (time.monotonic() - began)))

    async def _once(self, pool: _Pool, backend: str) -> str | None:
        """Check once: why it failed, or None."""
        path = pool.paths.get(backend)
        if path is None or self._tunnel is None:
            return "no way towards it is known"
        kind = socket.SOCK_STREAM if pool.check.protocol == "tcp" else socket.SOCK_DGRAM
        family = socket.AF_INET6 if ":" in pool.target[0] else socket.AF_INET
        try:
            await check(pool.check, self._tunnel.socket(path, family, kind), pool.target)
        except CheckError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _decide(self) -> None:
        out = self._taken_out()
        if out != self._out:
            self._out = out
            self._on_change(out)

    def _taken_out(self) -> dict[str, Remedy]:
        checks = {id(pool.health): pool.check for pool in self._pools.values()}
        out: dict[str, Remedy] = {}
        for backend, by in taken_out(pool.health for pool in self._pools.values()).items():
            # One that is to be moved in one pool is moved: it is one machine.
            moved = any(checks[id(health)].on_failure == "move" for health in by)
            out[backend] = "move" if moved else "drain"
        return out


def _path(number: int, backend: BackendSpec, pool: PoolSpec, way: WayOut | None) -> Path | None:
    if way is None or way.next_hop is None:
        return None
    source = source_of(pool, backend.address, way)
    if source is None:
        return None
    return Path(number, way.interface, way, backend.address, pool, source)


__all__ = ["JITTER", "HealthMonitor", "Remedy"]
