"""What the checks of a pool ask: one of its VIPs."""

from __future__ import annotations

from sockway.balancer.health.spec import HealthSpec
from sockway.balancer.spec import BalancerSpec, VipSpec
from sockway.errors import ConfigError


def checked_pools(spec: BalancerSpec) -> dict[str, HealthSpec]:
    """Pools that are to be checked: those with a check, backends and a VIP, whichever it is."""
    used = {vip.pool for vip in spec.vip}
    return {
        name: pool.health
        for name, pool in spec.pool.items()
        if pool.health is not None and pool.backends and name in used
    }


def target_of(spec: BalancerSpec, name: str) -> tuple[str, int]:
    """Address and port that the checks of a pool ask: its first VIP that fits.

    Args:
        spec: the configuration.
        name: of a pool that has a health check.

    Raises:
        ConfigError: there is none that can be asked.

    """
    pool = spec.pool[name]
    health = pool.health
    if health is None:
        raise ConfigError(f"pool {name} has no health check")
    local = [backend for backend, each in pool.backends.items() if each.local]
    if local:
        # The VIP is this host's own, and what it sends there never gets to an interface.
        raise ConfigError(
            f"pool {name} can't be checked from here: its backend {local[0]} is this host",
            hint="leave out the pool's health check, or the local backend",
        )
    for vip in spec.vip:
        if vip.pool == name and vip.listen.startswith(f"{health.protocol}://"):
            port = _port_of(vip, health)
            if port:
                return str(vip.address), port
    raise ConfigError(
        f"no VIP of pool {name} can be asked by {health.type} checks",
        hint=f"add a {health.protocol}:// VIP with a port, or give the check a port",
    )


def _port_of(vip: VipSpec, health: HealthSpec) -> int | None:
    if health.port and vip.port in {0, health.port}:
        return health.port
    return None if health.port else vip.port or None


__all__ = ["checked_pools", "target_of"]
