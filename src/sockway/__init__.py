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

from sockway.errors import (
    BusyError,
    ConfigError,
    FeatureError,
    IncompatibleError,
    KernelError,
    NotFoundError,
    PermissionDenied,
    ReleaseError,
    SockwayError,
    StateError,
    VerifierError,
)
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
