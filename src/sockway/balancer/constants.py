"""What is constant in a balancer's programs, set before they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sockway.balancer.layout import flag
from sockway.balancer.spec import BalancerSpec
from sockway.balancer.state import hash_key


def constants_of(spec: BalancerSpec) -> tuple[Any, ...]:
    """Return what has to be loaded anew when it changes."""
    return spec.secret, spec.memory, spec.flow_timeout, spec.udp_timeout, bool(spec.next)


def configuring(before: BalancerSpec, after: BalancerSpec) -> Callable[[Any], None]:
    """Return what sets the programs' constants.

    Args:
        before: the configuration that the programs in force were made for.
        after: the one that they are to be made for.

    """
    kinds = {"history": "MEMORY_HISTORY", "table": "MEMORY_TABLE", "none": "MEMORY_NONE"}

    def configure(config: Any) -> None:
        if after.secret != before.secret or not any(config.hash_key):
            config.hash_key[:] = hash_key(after.secret)
        config.memory = flag("memory", kinds[after.memory])
        config.flow_timeout = max(1, int(after.flow_timeout))
        config.id_timeout = max(1, int(after.udp_timeout))
        config.chain = bool(after.next)

    return configure


__all__ = ["configuring", "constants_of"]
