"""Programs: attaching, pinning, test runs, run statistics."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from sockway.errors import FeatureError
from sockway.kernel.ffi import check, error_of, ffi, lib
from sockway.kernel.link import AttachType, Link, XdpMode
from sockway.kernel.pins import open_pin, pin

if TYPE_CHECKING:
    from types import TracebackType

SO_ATTACH_REUSEPORT_EBPF: Final = 52
_LIVE_FRAMES: Final = 2  # BPF_F_TEST_XDP_LIVE_FRAMES
_XDP: Final = 6  # BPF_PROG_TYPE_XDP, BPF_F_XDP_HAS_FRAGS in <linux/bpf.h>
_SEVERAL: Final = 1 << 5
_PASS: Final = struct.pack("<BBhi", 0xB7, 0, 0, 2) + struct.pack("<BBhi", 0x95, 0, 0, 0)
"""`r0 = XDP_PASS; exit`, eight octets an instruction."""
_REDIRECT: Final = 23  # BPF_FUNC_redirect
_RUN_OPTS: Final = 80
_ROOM: Final = 256
"""Octets that a program under test may add to a packet."""


class _Info(ctypes.Structure):
    """The head of `struct bpf_prog_info` in <linux/bpf.h>."""

    _fields_ = (
        ("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32), ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64), ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64), ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32), ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16), ("ifindex", ctypes.c_uint32), ("bits", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64), ("netns_ino", ctypes.c_uint64),
        ("nr_jited_ksyms", ctypes.c_uint32), ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64), ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32), ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64), ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32), ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64), ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32), ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32), ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64), ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64), ("verified_insns", ctypes.c_uint32),
    )  # fmt: skip


@dataclass(frozen=True)
class RunStats:
    """What the kernel measured of a program while statistics were on."""

    count: int
    nanoseconds: int

    @property
    def mean(self) -> float:
        """Nanoseconds a run."""
        return self.nanoseconds / self.count if self.count else 0.0


@dataclass(frozen=True)
class TestRun:
    """The outcome of BPF_PROG_TEST_RUN."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    retval: int
    data: bytes
    """The packet as the program left it."""
    duration: int
    """Nanoseconds a repetition, as the kernel measured."""


class Program:
    """An open program."""

    def __init__(self, fd: int) -> None:
        """Take over the descriptor `fd`."""
        self.fd = fd

    @classmethod
    def from_pin(cls, path: Path | str) -> Self:
        """Open a pinned program.

        Raises:
            NotFoundError: nothing is pinned there.

        """
        return cls(open_pin(path))

    @classmethod
    def passing(cls, *, several: bool = False) -> Self:
        """Load an XDP program that passes everything: to try what a device takes.

        Args:
            several: for frames of several buffers.

        """
        return cls(_load_xdp("sockway_pass", _PASS, _SEVERAL if several else 0))

    @classmethod
    def redirecting(cls, ifindex: int) -> Self:
        """Load an XDP program that sends every frame out by another device."""
        code = (
            struct.pack("<BBhi", 0xB7, 1, 0, ifindex)  # r1 = ifindex
            + struct.pack("<BBhi", 0xB7, 2, 0, 0)  # r2 = 0
            + struct.pack("<BBhi", 0x85, 0, 0, _REDIRECT)  # call
            + struct.pack("<BBhi", 0x95, 0, 0, 0)  # exit
        )
        return cls(_load_xdp("sockway_send", code, 0))

    @property
    def name(self) -> str:
        """Its name in the kernel (15 octets at most)."""
        return str(self._info().name.decode())

    @property
    def id(self) -> int:
        """Its number in the kernel."""
        return int(self._info().id)

    @property
    def tag(self) -> str:
        """The kernel's digest of its instructions, in hex."""
        return bytes(self._info().tag).hex()

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Octets of the jited program, instructions after verification, instructions verified."""
        info = self._info()
        return int(info.jited_prog_len), int(info.xlated_prog_len) // 8, int(info.verified_insns)

    def run_stats(self) -> RunStats:
        """Runs and time while `enable_run_stats` was on, since it was loaded."""
        info = self._info()
        return RunStats(int(info.run_cnt), int(info.run_time_ns))

    def pin(self, path: Path | str) -> None:
        """Pin it at a path in bpffs."""
        pin(self.fd, path)

    def attach_reuseport(self, sock: socket.socket) -> None:
        """Make it choose the sockets of this socket's reuseport group, now and as it grows.

        Raises:
            KernelError: the socket has no SO_REUSEPORT, or it is no such program.

        """
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, self.fd)
        except OSError as error:
            raise error_of(error.errno or errno.EINVAL, "attach to a reuseport group") from error

    def attach_xdp(self, ifindex: int, mode: XdpMode = XdpMode.NATIVE) -> Link:
        """Attach to an interface by a link.

        Raises:
            FeatureError: the driver can't do this mode.

        """
        opts = ffi.new("struct link_opts *")
        opts.sz = ffi.sizeof("struct link_opts")
        opts.flags = int(mode)
        fd = lib.bpf_link_create(self.fd, ifindex, int(AttachType.XDP), opts)
        if fd == -errno.EOPNOTSUPP:
            raise FeatureError(
                f"interface {ifindex} can't run XDP in {str(mode.name).lower()} mode",
                hint="use generic mode, or another driver",
            )
        return Link(check(fd, f"attach XDP to interface {ifindex}"))

    def attach_tcx(self, ifindex: int, *, incoming: bool = True) -> Link:
        """Attach to what an interface receives or sends, behind the driver (tc), by a link.

        Raises:
            FeatureError: the kernel is too old; `clsact` is the way there.

        """
        kind = AttachType.TCX_INGRESS if incoming else AttachType.TCX_EGRESS
        fd = lib.bpf_link_create(self.fd, ifindex, int(kind), ffi.NULL)
        if fd == -errno.EINVAL:
            raise FeatureError(
                f"interface {ifindex} takes no tc program by a link",
                hint="it takes Linux 6.6 or later, with CONFIG_NET_XGRESS",
            )
        return Link(check(fd, f"attach tc to interface {ifindex}"))

    def attach_cgroup(self, cgroup_fd: int, kind: AttachType = AttachType.CGROUP_SOCK_OPS) -> Link:
        """Attach to a cgroup (version 2) by a link."""
        fd = lib.bpf_link_create(self.fd, cgroup_fd, int(kind), ffi.NULL)
        return Link(check(fd, "attach to the cgroup", "it must be a cgroup of version 2"))

    def attach_sk_lookup(self, netns_fd: int) -> Link:
        """Attach to a network namespace: asked which socket gets what no connection owns."""
        fd = lib.bpf_link_create(self.fd, netns_fd, int(AttachType.SK_LOOKUP), ffi.NULL)
        return Link(check(fd, "attach to the network namespace"))

    def attach_tracepoint(self, name: str) -> Link:
        """Attach a program of type raw_tracepoint to one of the kernel's tracepoints, by a link.

        Raises:
            FeatureError: the kernel has no such tracepoint.

        """
        fd = lib.bpf_raw_tracepoint_open(name.encode(), self.fd)
        if fd == -errno.ENOENT:
            raise FeatureError(f"the kernel has no tracepoint {name}")
        return Link(check(fd, f"attach to tracepoint {name}"))

    def iterate(self) -> bytes:
        """Run it once for each of the kernel's objects that it is an iterator of.

        Sockets are those of this thread's network namespace.

        Returns:
            What it wrote.

        """
        fd = lib.bpf_link_create(self.fd, 0, int(AttachType.TRACE_ITER), ffi.NULL)
        with Link(check(fd, "attach an iterator")) as link:
            fd = check(lib.bpf_iter_create(link.fd), "make an iterator")
        with open(fd, "rb", buffering=0) as rows:  # noqa: PTH123 - a descriptor
            return rows.read()

    def test_run(
        self, data: bytes | None, *, repeat: int = 1, live_frames: bool = False,
        batch_size: int = 0, context: bytes | None = None,
    ) -> TestRun:  # fmt: skip
        """Run it on a packet (BPF_PROG_TEST_RUN).

        Args:
            data: the packet from its Ethernet header on; None for a program of type syscall, which
                has a context alone and runs once. What it leaves in the context is then `data`
                of the outcome.
            repeat: how often; the packet is not restored in between.
            live_frames: what the program returns is done: frames go out or up the stack.
            batch_size: frames at a time, with `live_frames`; 0 leaves it to the kernel.
            context: the program's context (`struct xdp_md`), where its fields matter.

        Raises:
            KernelError: the packet or the context is none for this program.

        """
        opts = ffi.new("struct test_run_opts *")
        opts.sz = _RUN_OPTS
        if data is None:
            return self._run_syscall(opts, context or b"")
        given = ffi.from_buffer(data)
        opts.data_in, opts.data_size_in = given, len(data)
        out = ffi.new("char[]", len(data) + _ROOM)
        if live_frames:
            opts.flags, opts.batch_size = _LIVE_FRAMES, batch_size
        else:
            opts.data_out, opts.data_size_out = out, len(data) + _ROOM
        held = ffi.from_buffer(context) if context is not None else None
        if held is not None and context is not None:
            opts.ctx_in, opts.ctx_size_in = held, len(context)
        opts.repeat = repeat
        check(lib.bpf_prog_test_run_opts(self.fd, opts), "run a program for a test")
        left = b"" if live_frames else bytes(ffi.buffer(out, opts.data_size_out))
        return TestRun(int(opts.retval), left, int(opts.duration))

    def _run_syscall(self, opts: Any, context: bytes) -> TestRun:
        # The kernel writes the context back to where it was read, and refuses all else:
        # data, a repeat count, a place for the context to go to.
        held = ffi.new("char[]", context)
        opts.ctx_in, opts.ctx_size_in = held, len(context)
        check(lib.bpf_prog_test_run_opts(self.fd, opts), "run a program for a test")
        return TestRun(int(opts.retval), bytes(ffi.buffer(held, len(context))), 0)

    def close(self) -> None:
        """Close the descriptor; what is attached or pinned goes on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        """Return itself; it is closed when the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __del__(self) -> None:
        """Close a descriptor that was forgotten."""
        if getattr(self, "fd", -1) >= 0:
            self.close()

    def _info(self) -> _Info:
        raw = _Info()
        size = ffi.new("__u32 *", ctypes.sizeof(raw))
        check(lib.bpf_obj_get_info_by_fd(self.fd, ffi.from_buffer(raw), size), "ask of a program")
        return raw


def _load_xdp(name: str, code: bytes, flags: int) -> int:
    opts = ffi.new("struct prog_load_opts *")
    opts.sz = ffi.sizeof("struct prog_load_opts")
    # As libbpf loads others: a link takes no program of another attach type in exchange.
    opts.expected_attach_type = int(AttachType.XDP)
    opts.prog_flags = flags
    count = len(code) // 8
    fd = lib.bpf_prog_load(_XDP, name.encode(), b"GPL", ffi.from_buffer(code), count, opts)
    return check(fd, "load an XDP program")


@contextlib.contextmanager
def enable_run_stats() -> Iterator[None]:
    """Have the kernel measure every program's runs while the block lasts (BPF_ENABLE_STATS)."""
    fd = check(lib.bpf_enable_stats(0), "switch on BPF run statistics")
    try:
        yield
    finally:
        os.close(fd)
