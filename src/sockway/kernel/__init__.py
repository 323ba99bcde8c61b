"""The kernel layer: BPF objects, maps, programs, links, namespaces. Only it knows libbpf."""

from __future__ import annotations

from sockway.kernel import bpffs, clsact, sockdiag
from sockway.kernel.btf import Types
from sockway.kernel.layout import ObjectLayout
from sockway.kernel.link import AttachType, Link, XdpMode
from sockway.kernel.map import Map
from sockway.kernel.mapinfo import MapInfo, MapType, possible_cpus
from sockway.kernel.netns import Netns, current_netns_cookie
from sockway.kernel.object import BpfObject
from sockway.kernel.program import Program, RunStats, TestRun, enable_run_stats
from sockway.kernel.ringbuf import RingBuffer
from sockway.kernel.spec import MapSpec, ProgramSpec

__all__ = [
    "AttachType",
    "BpfObject",
    "Link",
    "Map",
    "MapInfo",
    "MapSpec",
    "MapType",
    "Netns",
    "ObjectLayout",
    "Program",
    "ProgramSpec",
    "RingBuffer",
    "RunStats",
    "TestRun",
    "Types",
    "XdpMode",
    "bpffs",
    "clsact",
    "current_netns_cookie",
    "enable_run_stats",
    "possible_cpus",
    "sockdiag",
]
