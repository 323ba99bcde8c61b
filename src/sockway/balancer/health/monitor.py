"""All checks of a balancer, each at its own pace, and what is done about their results."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sockway.balancer.health.checks import CheckError, check
from sockway.balancer.health.decision import PoolHealth
from sockway.balancer.health.spec import HealthSpec
from sockway.balancer.health.tunnel import CheckTunnel, Path
from sockway.balancer.nexthop import Found, WayOut
from sockway.balancer.spec import BackendSpec, BalancerSpec, PoolSpec, VipSpec
from sockway.errors import ConfigError

JITTER: Final = 0.1
"""Part of an interval that it varies by, so that checks do not come in step."""

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
        self._out: Mapping[str, Remedy] = {}

    def follow(self, spec: BalancerSpec, ways: Found, failing: Mapping[str, Remedy]) -> None:
        """Check what this configuration says, from now on.

        Args:
            spec: the configuration in force.
            ways: the ways out to all backends.
            failing: backends that are out already, by whoever checked before.

        Raises:
            ConfigError: a pool has no VIP that its check could ask.
            KernelError: the kernel refused the program of the checks' tunnel.

        """
        if not self._pools:
            self._out = dict(failing)
        wanted = {name: pool for name, pool in spec.pool.items() if pool.health is not None}
        targets = {name: target_of(spec, name, pool) for name, pool in wanted.items()}
        for name in self._pools.keys() - wanted.keys():
            self._stop(self._pools.pop(name))
        for name, pool in wanted.items():
            self._follow_pool(name, pool, targets[name], failing)
        self._lead(ways, spec)
        for checked in self._pools.values():
            self._start(checked)
        self._decide()

    def ways_changed(self, ways: Found, spec: BalancerSpec) -> None:
        """The ways out are others now."""
        self._lead(ways, spec)

    def report(self) -> dict[str, list[dict[str, Any]]]:
        """What is known of each backend, by pool."""
        return {
            name: [
                {
                    "name": backend,
                    "up": judgement.up,
                    "reason": judgement.reason,
                    "latency": judgement.latency,
                    "kept": judgement.up is False and backend not in pool.health.out,
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
        if self._tunnel is not None:
            self._tunnel.close()
            self._tunnel = None

    def _follow_pool(
        self, name: str, spec: PoolSpec, target: tuple[str, int], failing: Mapping[str, Remedy]
    ) -> None:
        check_spec = spec.health
        if check_spec is None:
            return
        held = self._pools.get(name)
        if held is None or held.check != check_spec or held.target != target:
            health = PoolHealth(check_spec.rise, check_spec.fall, check_spec.max_down)
            if held is not None:  # what was found stays true until it is found to be otherwise
                health.judgements = held.health.judgements
                self._stop(held)
            held = self._pools[name] = _Pool(spec, check_spec, target, health)
        held.spec = spec
        checked = {n for n, b in spec.backends.items() if not b.local}
        held.health.keep(checked, failing)
        for gone in held.tasks.keys() - checked:
            held.tasks.pop(gone).cancel()

    def _lead(self, ways: Found, spec: BalancerSpec) -> None:
        """Give the tunnel the paths of all checks."""
        if not self._pools:
            return
        if self._tunnel is None:
            self._tunnel = CheckTunnel.open(spec.mark)
        number, paths = 0, []
        for name in sorted(self._pools):
            pool = self._pools[name]
            pool.paths = {}
            for backend in sorted(pool.health.judgements):
                number += 1
                way = ways.get(pool.spec.backends[backend].address)
                path = _path(number, pool.spec.backends[backend], pool.spec, way)
                if path is not None:
                    pool.paths[backend] = path
                    paths.append(path)
        self._tunnel.lead(paths)

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
            return "no next hop towards it is known"
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
        out: dict[str, Remedy] = {}
        for pool in self._pools.values():
            for backend in pool.health.out:
                # One that is to be moved in one pool is moved: it is one machine.
                if out.get(backend) != "move":
                    out[backend] = pool.check.on_failure
        if out != self._out:
            self._out = out
            with contextlib.suppress(asyncio.CancelledError):
                self._on_change(out)


def target_of(spec: BalancerSpec, name: str, pool: PoolSpec) -> tuple[str, int]:
    """Address and port that the checks of a pool ask: its first VIP that fits.

    Raises:
        ConfigError: there is none.

    """
    health = pool.health
    if health is None:
        raise ConfigError(f"pool {name} has no health check")
    for vip in spec.vip:
        if vip.pool == name and vip.listen.startswith(f"{health.protocol}://"):
            port = _port_of(vip, health)
            if port:
                return str(vip.address), port
    raise ConfigError(
        f"pool.{name}.health: no VIP of pool {name} is asked by {health.type} checks",
        hint=f"add a {health.protocol}:// VIP with a port, or give the check a port",
    )


def _port_of(vip: VipSpec, health: HealthSpec) -> int | None:
    if health.port and vip.port in {0, health.port}:
        return health.port
    return None if health.port else vip.port or None


def _path(number: int, backend: BackendSpec, pool: PoolSpec, way: WayOut | None) -> Path | None:
    if way is None or way.next_hop is None:
        return None
    return Path(number, way.interface, way, backend.address, pool)


__all__ = ["JITTER", "HealthMonitor", "Remedy", "target_of"]
