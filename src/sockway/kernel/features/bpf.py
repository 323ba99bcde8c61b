"""What of BPF the kernel has: tiny programs and maps are made and thrown away."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sockway.kernel import ffi as libbpf
from sockway.kernel.features.feature import Probe, missing
from sockway.kernel.ffi import check, ffi, lib
from sockway.kernel.map import Map
from sockway.kernel.mapinfo import MapType
from sockway.kernel.object import BpfObject
from sockway.kernel.program import Program

ROUTER: Final = Path(__file__).parents[1] / "objects" / "socket_router.bpf.o"
REDIRECTS: Final = ROUTER.with_name("redirects.bpf.o")
KERNEL_BTF: Final = Path("/sys/kernel/btf/vmlinux")
LEAST_LIBBPF: Final = (1, 1)

_MMAPABLE: Final = 1 << 10  # BPF_F_MMAPABLE
_SLEEPABLE: Final = 1 << 4  # BPF_F_SLEEPABLE
_SELECT_OR_MIGRATE: Final = 40  # BPF_SK_REUSEPORT_SELECT_OR_MIGRATE
_SK_LOOKUP_ATTACH: Final = 36  # BPF_SK_LOOKUP

_RETURN_0: Final = bytes.fromhex("b7000000000000009500000000000000")
"""`r0 = 0; exit`, eight octets an instruction."""


class ProgramType(enum.IntEnum):
    """Program types that Sockway uses, by their numbers in <linux/bpf.h>."""

    SCHED_CLS = 3
    XDP = 6
    SOCK_OPS = 13
    SK_REUSEPORT = 21
    SK_LOOKUP = 30
    SYSCALL = 31


def probes() -> list[Probe]:
    """All questions about BPF."""
    return [
        Probe("libbpf", "loading BPF objects", libbpf.INSTALL, _libbpf, required=True),
        Probe("bpf()", "everything", "a kernel with CONFIG_BPF_SYSCALL", _syscall, required=True),
        Probe("JIT", "programs at the speed of native code",
              "sysctl net.core.bpf_jit_enable=1", _jit),
        Probe("kernel BTF", "kfuncs; none is needed to route to sockets",
              "a kernel with CONFIG_DEBUG_INFO_BTF", _kernel_btf),
        *_programs(),
        *_helpers(),
        *_maps(),
        Probe("redirect failures", "counting frames that a device did not take after the balancer"
              " sent them", "a kernel with CONFIG_BPF_EVENTS and CONFIG_DEBUG_INFO_BTF, and"
              " CAP_PERFMON", _redirects),
        Probe("socket router", "routing packets to sockets: the program itself is loaded",
              "see which of the features above is missing, and report it if none is", _router,
              required=True),
    ]  # fmt: skip


def _programs() -> Iterator[Probe]:
    def probe(
        kind: ProgramType, need: str, remedy: str, *, attach: int = 0, flags: int = 0,
        name: str = "", required: bool = False,
    ) -> Probe:  # fmt: skip
        name = name or f"program type {kind.name.lower()}"
        return Probe(name, need, remedy, lambda: _load(kind, attach, flags), required)

    yield probe(
        ProgramType.SK_REUSEPORT, "choosing a socket for each packet",
        "Linux 4.19 or later, with CONFIG_INET", required=True,
    )  # fmt: skip
    yield probe(
        ProgramType.SK_REUSEPORT, "connections that wait in a listener's queue when it closes",
        "Linux 5.14 or later", attach=_SELECT_OR_MIGRATE, name="sk_reuseport/migrate",
        required=True,
    )  # fmt: skip
    yield probe(ProgramType.XDP, "the balancer, and taking off tunnels", "Linux 4.8 or later")
    yield probe(ProgramType.SOCK_OPS, "stamps in TCP options", "a kernel with CONFIG_CGROUP_BPF")
    yield probe(
        ProgramType.SK_LOOKUP, "serving prefixes and port ranges", "Linux 5.9 or later",
        attach=_SK_LOOKUP_ATTACH,
    )  # fmt: skip
    yield probe(
        ProgramType.SCHED_CLS, "rewriting packets on their way out",
        "a kernel with CONFIG_NET_CLS_BPF",
    )  # fmt: skip
    yield probe(
        ProgramType.SYSCALL, "setting up keys in the kernel", "Linux 5.14 or later",
        flags=_SLEEPABLE,
    )  # fmt: skip


def _helpers() -> Iterator[Probe]:
    wanted = (
        ("sk_select_reuseport", 82, "choosing a socket", "Linux 4.19 or later"),
        ("skb_load_bytes_relative", 68, "reading addresses", "Linux 4.19 or later"),
        ("ktime_get_coarse_ns", 160, "the age of flows, cheaply", "Linux 5.11 or later"),
        ("loop", 181, "searching for a live worker", "Linux 5.17 or later"),
    )
    for name, number, need, remedy in wanted:
        yield Probe(f"helper bpf_{name}", need, remedy, _helper_of(number), required=True)


def _maps() -> Iterator[Probe]:
    yield Probe("map reuseport_sockarray", "the sockets of a generation", "Linux 4.19 or later",
                _map_of(MapType.REUSEPORT_SOCKARRAY, 8), required=True)  # fmt: skip
    yield Probe("map array, memory-mapped", "publishing by one store", "Linux 5.5 or later",
                _mmapable, required=True)  # fmt: skip
    yield Probe("map percpu_array", "counters", "Linux 4.6 or later",
                _map_of(MapType.PERCPU_ARRAY, 8), required=True)  # fmt: skip
    yield Probe("map array_of_maps", "a generation's sockets by VIP; sizes differ between them",
                "Linux 5.10 or later", _map_of_maps, required=True)  # fmt: skip
    others = (
        (MapType.LRU_PERCPU_HASH, "the balancer's connections", "Linux 4.10 or later"),
        (MapType.RINGBUF, "events for user space", "Linux 5.8 or later"),
        (MapType.SK_STORAGE, "a connection's stamp", "Linux 5.2 or later"),
    )
    for kind, need, remedy in others:
        yield Probe(f"map {kind.name.lower()}", need, remedy, _known_map(kind))


def _libbpf() -> str:
    version = libbpf.version()
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_LIBBPF:
        raise missing(f"version {version} is too old")
    return version


def _syscall() -> str:
    with Map.create(MapType.HASH, key_size=4, value_size=4, max_entries=1):
        pass
    return _load(ProgramType.SK_REUSEPORT, 0, 0) and "permitted"


def _jit() -> str:
    # The sysctl is not to be seen in every network namespace; what becomes of a program is.
    with Program(_loaded(ProgramType.SK_REUSEPORT, 0, 0)) as program:
        jited, _, _ = program.sizes
    if not jited:
        raise missing("off")
    return "on"


def _kernel_btf() -> str:
    return f"{KERNEL_BTF.stat().st_size >> 10} KiB at {KERNEL_BTF}"


def _load(kind: ProgramType, attach: int, flags: int) -> str:
    os.close(_loaded(kind, attach, flags))
    return "loads"


def _loaded(kind: ProgramType, attach: int, flags: int) -> int:
    opts = ffi.new("struct prog_load_opts *")
    opts.sz = ffi.sizeof("struct prog_load_opts")
    opts.expected_attach_type = attach
    opts.prog_flags = flags
    name = kind.name.lower()
    fd = lib.bpf_prog_load(int(kind), b"sockway_probe", b"GPL", _RETURN_0, 2, opts)
    return check(fd, f"load a program of type {name}")


def _helper_of(number: int) -> Callable[[], str]:
    def run() -> str:
        # libbpf can't tell a refusal from a lack; so first see that loading is permitted.
        _load(ProgramType.SK_REUSEPORT, 0, 0)
        found = check(
            lib.libbpf_probe_bpf_helper(int(ProgramType.SK_REUSEPORT), number, ffi.NULL),
            "ask for a helper",
        )
        if not found:
            raise missing("programs of type sk_reuseport can't call it")
        return "callable from sk_reuseport"

    return run


def _map_of(kind: MapType, value_size: int) -> Callable[[], str]:
    def run() -> str:
        with Map.create(kind, key_size=4, value_size=value_size, max_entries=1):
            return "creatable"

    return run


def _known_map(kind: MapType) -> Callable[[], str]:
    def run() -> str:
        _syscall()
        if not check(lib.libbpf_probe_bpf_map_type(int(kind), ffi.NULL), f"ask for {kind.name}"):
            raise missing("the kernel does not know it")
        return "creatable"

    return run


def _mmapable() -> str:
    with Map.create(
        MapType.ARRAY, key_size=4, value_size=8, max_entries=1, flags=_MMAPABLE
    ) as array:
        memory = array.mmap(ctypes.c_uint64)
        memory.value = 0x600DF00D
        if array[0] != memory.value:
            raise missing("a store into it is not seen by the kernel")
    return "a store is seen at once"


@contextlib.contextmanager
def _outer(*sizes: int) -> Iterator[tuple[Map, list[Map]]]:
    """A map of maps, and socket arrays of these sizes that are not in it yet."""

    def sockets(entries: int) -> Map:
        return Map.create(
            MapType.REUSEPORT_SOCKARRAY, key_size=4, value_size=8, max_entries=entries
        )

    with contextlib.ExitStack() as stack:
        inner = [stack.enter_context(sockets(entries)) for entries in sizes]
        outer = stack.enter_context(
            Map.create(
                MapType.ARRAY_OF_MAPS,
                key_size=4,
                value_size=4,
                max_entries=len(sizes),
                inner=inner[0],
            )
        )
        yield outer, inner


def _map_of_maps() -> str:
    with _outer(1, 2) as (outer, inner):
        for key, array in enumerate(inner):
            outer[key] = array
        if outer[1] != inner[1].info.id:
            raise missing("it does not give back what was put in")
    return "holds socket arrays of any size"


def _redirects() -> str:
    with BpfObject.open(REDIRECTS, name="redirects") as made:
        made.load()
        with made.program("on_redirect_err") as program:
            program.attach_tracepoint("xdp_redirect_err").close()
        return "told by tracepoints"


def _router() -> str:
    if not ROUTER.exists():
        raise missing("the installation has no compiled objects")
    with BpfObject.open(ROUTER, name="router") as router:
        router.load()
        return f"{len(router.programs)} programs load"
