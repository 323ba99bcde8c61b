"""What the balancer's C side declares (`bpf/balancer.h`), as Python sees it."""

from __future__ import annotations

import ipaddress
import struct
from functools import cache
from typing import Any, Final

from sockway.kernel import ObjectLayout

LAYOUT: Final = ObjectLayout("balancer")

PROGRAMS: Final = ("balancer", "explain")
"""Pins of the programs that are loaded."""

JUMBO: Final = {"balancer": "balancer_frags", "next": "next_frags"}
"""What is loaded and pinned in whose place where frames may be several buffers."""

PINNED_MAPS: Final = {
    ".rodata": "config",
    ".data.settings": "settings",
    ".data.quic_ids": "quic_ids",
    "vips": "vips",
    "pools": "pools",
    "rings": "rings",
    "backends": "backends",
    "limits": "limits",
    "ids": "ids",
    "flows": "flows",
    "vip_counters": "vip_counters",
    "backend_counters": "backend_counters",
    "notes": "notes",
    "captured": "captured",
    "explanation": "explanation",
    "next": "next",
}
"""Maps that outlive the process, by their name in the object, and what their pins are called."""

VALUES: Final = {
    "vips": "vip_bucket",
    "pools": "pool",
    "rings": "ring_line",
    "backends": "backend",
    "limits": "limit",
    "ids": "id_bucket",
    "flows": "flow_bucket",
    "vip_counters": "vip_counters",
    "backend_counters": "backend_counters",
    "notes": "note",
    "explanation": "explanation",
}
"""The C struct of each map's values."""

_MAPPED: Final = bytes(10) + b"\xff\xff"

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@cache
def limit(name: str) -> int:
    """A number of the C enum `balancer_limit`."""
    return LAYOUT.constant("balancer_limit", name)


@cache
def flag(enum: str, name: str) -> int:
    """A bit of one of the flag enums."""
    return LAYOUT.constant(enum, name)


@cache
def outcomes() -> tuple[str, ...]:
    """Names of what becomes of packets, each at its counter's index."""
    return LAYOUT.names("outcome", "OUTCOMES")


def record(name: str) -> Any:
    """The C struct `name` as a ctypes structure class."""
    return LAYOUT.struct(name)


def words(address: IpAddress) -> tuple[int, int, int, int]:
    """An address as the C side has it: four words in network order, IPv4 mapped."""
    raw = address.packed if isinstance(address, ipaddress.IPv6Address) else _MAPPED + address.packed
    first, second, third, fourth = struct.unpack("<4I", raw)
    return first, second, third, fourth


def address_of(four: Any) -> IpAddress:
    """The address that four words of the C side are."""
    raw = struct.pack("<4I", *four)
    if raw.startswith(_MAPPED):
        return ipaddress.IPv4Address(raw[12:])
    return ipaddress.IPv6Address(raw)


def swapped(port: int) -> int:
    """A port in network order, as the C side reads it."""
    return port >> 8 | (port & 0xFF) << 8
