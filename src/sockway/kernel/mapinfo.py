"""What the kernel says of maps: their types, their sizes, for how many CPUs they have values."""

from __future__ import annotations

import ctypes
import enum
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sockway.kernel.ffi import check, ffi, lib


class MapType(enum.IntEnum):
    """Map types that Sockway uses, by their numbers in <linux/bpf.h>."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    REUSEPORT_SOCKARRAY = 20
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    RINGBUF = 27


class _Info(ctypes.Structure):
    """The head of `struct bpf_map_info` in <linux/bpf.h>."""

    _fields_ = (
        ("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32), ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32), ("name", ctypes.c_char * 16),
    )  # fmt: skip


@dataclass(frozen=True)
class MapInfo:
    """What the kernel says of a map."""

    type: int
    id: int
    key_size: int
    """Octets."""
    value_size: int
    """Octets, of one CPU's value where the map is per CPU."""
    max_entries: int
    flags: int
    name: str


@cache
def possible_cpus() -> int:
    """CPUs that the kernel has per-CPU values for."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return int(text.split(",")[-1].split("-")[-1]) + 1


def read_info(fd: int) -> MapInfo:
    """Ask the kernel about the map behind a descriptor.

    Raises:
        KernelError: it is no map.

    """
    raw = _Info()
    size = ffi.new("__u32 *", ctypes.sizeof(raw))
    check(lib.bpf_obj_get_info_by_fd(fd, ffi.from_buffer(raw), size), "ask about a map")
    return MapInfo(
        raw.type, raw.id, raw.key_size, raw.value_size, raw.max_entries, raw.map_flags,
        raw.name.decode(),
    )  # fmt: skip
