"""What the router's C side declares, as Python sees it.

Every layout, number and name here comes from the BTF of the compiled object (`bpf/router.h`), so
that nothing is written down twice. The object is opened once, for its types alone.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Any, Final

from sockway.kernel import BpfObject, Types

OBJECT: Final = "socket_router.bpf.o"

PROGRAMS: Final = {
    "tcp": "route_tcp",
    "quic": "route_quic",
    "tuple": "route_tuple",
    "cookie": "route_cookie",
    "none": "route_none",
}
"""The program of each flow mode, by the mode's name."""

PINNED_MAPS: Final = {
    ".rodata": "config",
    ".data.service": "service",
    "vips": "vips",
    "arrays": "arrays",
    "weights": "weights",
    "flows": "flows",
    "vip_counters": "vip_counters",
    "worker_counters": "worker_counters",
}
"""Maps that outlive the process, by their name in the object, and what their pins are called."""


@cache
def object_bytes() -> bytes:
    """The compiled object as it is in the package."""
    return resources.files("sockway.kernel").joinpath("objects", OBJECT).read_bytes()


@cache
def build_digest() -> int:
    """64 bits that tell one build of the object from another."""
    return int.from_bytes(hashlib.sha256(object_bytes()).digest()[:8], "little")


@cache
def types() -> Types:
    """The object's types."""
    with BpfObject.open(object_bytes(), name="router") as spec:
        return spec.types


@cache
def struct(name: str) -> Any:
    """The C struct `name` as a ctypes structure class."""
    return types().struct(name)


@cache
def constant(enum: str, name: str) -> int:
    """The value of `name` in the C enum `enum`."""
    return int(types().enum(enum)[name].value)


@cache
def limit(name: str) -> int:
    """A number of the C enum `limit`."""
    return constant("limit", name)


@cache
def decisions() -> tuple[str, ...]:
    """Names of the router's decisions in lower case, each at its counter's index."""
    members = [m for m in types().enum("decision") if m.name != "DECISIONS"]
    return tuple(m.name.lower() for m in sorted(members, key=int))
