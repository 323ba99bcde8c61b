"""Sockway: packet routing from XDP to the socket, controlled from Python.

A release is a new generation of a service: opened with its sockets in place, published by one
store, while the one before it drains.

    service = sockway.Service.open("web", [sockway.Vip.parse("tcp://[::]:8080")])
    with service.generation(workers=2) as generation:
        # Give generation.sockets(n) to each worker, and wait until it is ready.
        generation.publish()

What may wait is a coroutine in `sockway.aio`. All errors are `SockwayError`s.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sockway.errors import (
    BusyError,
    ConfigError,
    FeatureError,
    IncompatibleError,
    KernelError,
    MissingExtra,
    NotFoundError,
    PermissionDenied,
    ReleaseError,
    SockwayError,
    StateError,
    VerifierError,
)

if TYPE_CHECKING:
    from sockway.sockets.counters import Counters, WorkerCount
    from sockway.sockets.drain import DrainProgress
    from sockway.sockets.generation import Generation
    from sockway.sockets.service import Service
    from sockway.wire.addresses import FlowMode, IdSource, Spread, Vip
    from sockway.wire.host_id import HostIds

__all__ = [
    "BusyError",
    "ConfigError",
    "Counters",
    "DrainProgress",
    "FeatureError",
    "FlowMode",
    "Generation",
    "HostIds",
    "IdSource",
    "IncompatibleError",
    "KernelError",
    "MissingExtra",
    "NotFoundError",
    "PermissionDenied",
    "ReleaseError",
    "Service",
    "SockwayError",
    "Spread",
    "StateError",
    "VerifierError",
    "Vip",
    "WorkerCount",
]

_HOMES = {
    "Counters": "sockets.counters",
    "DrainProgress": "sockets.drain",
    "FlowMode": "wire.addresses",
    "Generation": "sockets.generation",
    "HostIds": "wire.host_id",
    "IdSource": "wire.addresses",
    "Service": "sockets.service",
    "Spread": "wire.addresses",
    "Vip": "wire.addresses",
    "WorkerCount": "sockets.counters",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562).

    Workers import `sockway.drain` or `sockway.quic` and nothing else: they must not pay for
    libbpf and netlink with each start.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"sockway.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What the module has, loaded or not."""
    return sorted({*globals(), *__all__})
