"""Links: a program's attachment that can be pinned, and exchanged in one step."""

from __future__ import annotations

import ctypes
import enum
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sockway.kernel.ffi import check, ffi, lib
from sockway.kernel.pins import open_pin, pin

if TYPE_CHECKING:
    from types import TracebackType

    from sockway.kernel.program import Program


class AttachType(enum.IntEnum):
    """Where links attach, by the numbers in <linux/bpf.h>."""

    CGROUP_SOCK_OPS = 3
    TRACE_ITER = 28
    SK_LOOKUP = 36
    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class XdpMode(enum.IntFlag):
    """How XDP runs, by the XDP_FLAGS of <linux/if_link.h>."""

    GENERIC = 1 << 1
    NATIVE = 1 << 2
    OFFLOADED = 1 << 3


class _Info(ctypes.Structure):
    """The head of `struct bpf_link_info` in <linux/bpf.h>, as it is for cgroups."""

    _fields_ = (
        ("type", ctypes.c_uint32), ("id", ctypes.c_uint32), ("prog_id", ctypes.c_uint32),
        ("cgroup_id", ctypes.c_uint64), ("attach_type", ctypes.c_uint32),
    )  # fmt: skip


class Link:
    """An open link. The attachment ends when nothing refers to it: no descriptor, no pin."""

    def __init__(self, fd: int) -> None:
        """Take over the descriptor `fd`."""
        self.fd = fd

    @classmethod
    def from_pin(cls, path: Path | str) -> Self:
        """Open a pinned link.

        Raises:
            NotFoundError: nothing is pinned there.

        """
        return cls(open_pin(path))

    def pin(self, path: Path | str) -> None:
        """Pin it at a path in bpffs: the attachment outlives the process."""
        pin(self.fd, path)

    def cgroup_id(self) -> int:
        """Of a link to a cgroup: which one; 0: it is gone, and the link leads nowhere."""
        raw = _Info()
        size = ffi.new("__u32 *", ctypes.sizeof(raw))
        check(lib.bpf_obj_get_info_by_fd(self.fd, ffi.from_buffer(raw), size), "ask about a link")
        return int(raw.cgroup_id)

    def update(self, program: Program) -> None:
        """Exchange the program in one step: no packet meets none."""
        check(lib.bpf_link_update(self.fd, program.fd, ffi.NULL), "exchange a link's program")

    def detach(self) -> None:
        """End the attachment, whoever else refers to it."""
        check(lib.bpf_link_detach(self.fd), "detach a link")

    def close(self) -> None:
        """Close the descriptor; a pinned link goes on."""
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
