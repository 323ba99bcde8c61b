"""What a test run may leave behind on the machine, and how to see it.

A snapshot is taken before the first test and after the last one. Other people may be
using the machine, so what can't be told to be ours counts only where we are alone
(``everything=True``, in CI).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import re
import socket
import struct
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

MARKER = "SOCKWAY_TEST_RUN"
"""An environment variable that every process of the run inherits."""

SETTLE = 5.0
"""Seconds that the kernel and dying processes have until something is called left over."""

PINS = Path("/sys/fs/bpf/sockway")
NETNS_NAMES = Path("/run/netns")
SYS_BPF = {"x86_64": 321, "aarch64": 280}
BPF_PROG_GET_NEXT_ID = 11


@dataclass(frozen=True)
class Snapshot:
    """What there is at one moment, as lines that a person can act on."""

    mounts: Counter[str] = field(default_factory=Counter)
    namespaces: Counter[str] = field(default_factory=Counter)
    processes: Counter[str] = field(default_factory=Counter)
    descriptors: Counter[str] = field(default_factory=Counter)
    programs: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)

    def more_than(self, earlier: Snapshot) -> list[str]:
        """What is here and was not there earlier, one line each."""
        kinds = {
            "mount": self.mounts - earlier.mounts,
            "network namespace": self.namespaces - earlier.namespaces,
            "process": self.processes - earlier.processes,
            "open descriptor": self.descriptors - earlier.descriptors,
            "BPF program": self.programs - earlier.programs,
            "control group, pin or directory": self.named - earlier.named,
        }
        return [f"{kind}: {thing}" for kind, left in kinds.items() for thing in left.elements()]


def snapshot(base: Path, marker: str, *, everything: bool) -> Snapshot:
    """Look at the machine.

    Args:
        base: directory of the run's temporary files; mounts below it are ours.
        marker: value of the environment variable MARKER in our processes.
        everything: nobody else uses the machine: other mounts and all BPF programs count too.

    """
    return Snapshot(
        mounts=Counter(_mounts(None if everything else base)),
        namespaces=Counter(_named_namespaces() if everything else ()),
        processes=Counter(_processes(marker)),
        descriptors=Counter(_kernel_descriptors()),
        programs=Counter(_programs() if everything else ()),
        named=Counter(_named() if everything else ()),
    )


def left_over(earlier: Snapshot, base: Path, marker: str, *, everything: bool) -> list[str]:
    """What there is now and was not in ``earlier``, after SETTLE seconds at most."""
    deadline = time.monotonic() + SETTLE
    while True:
        left = snapshot(base, marker, everything=everything).more_than(earlier)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def _mounts(base: Path | None) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = [line.split()[4] for line in lines]
    return [point for point in points if base is None or Path(point).is_relative_to(base)]


def _named_namespaces() -> list[str]:
    return sorted(name.name for name in NETNS_NAMES.iterdir()) if NETNS_NAMES.is_dir() else []


def _named() -> list[str]:
    """What has Sockway's name in all places that outlive a process."""
    lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    mounts = [line.split()[:3] for line in lines]
    places = [Path(point) / "sockway*" for _, point, kind in mounts if kind.startswith("cgroup")]
    places += [PINS / "*", Path(tempfile.gettempdir()) / "sockway*"]
    with contextlib.suppress(PermissionError):
        return [str(found) for place in places for found in place.parent.glob(place.name)]
    return []


def _processes(marker: str) -> list[str]:
    """Our descendants, known by their environment: it outlives a parent that was killed."""
    needle = f"{MARKER}={marker}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) == os.getpid():
                continue
            if needle in (process / "environ").read_bytes().split(b"\0"):
                words = (process / "cmdline").read_bytes().split(b"\0")
                found.append(f"{process.name} {b' '.join(words).decode(errors='replace').strip()}")
        except OSError:
            continue  # it ended while we looked, or is not ours to look at
    return found


def _kernel_descriptors() -> list[str]:
    """Descriptors of this process that hold namespaces or BPF things, by kind."""
    gc.collect()  # what only garbage holds is not left behind
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if re.match(r"net:|anon_inode:bpf[-_]|/proc/.*/ns/net", target):
            found.append(re.sub(r"\[\d+\]", "", target))
    return found


def _programs() -> list[str]:
    """Identifiers of all BPF programs of the kernel; none where that is not permitted."""
    number = SYS_BPF.get(os.uname().machine)
    if number is None or os.geteuid() != 0:
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(128)
    found: list[str] = []
    current = 0
    while True:
        struct.pack_into("=I", attributes, 0, current)
        if libc.syscall(number, BPF_PROG_GET_NEXT_ID, attributes, len(attributes)) != 0:
            return found
        (current,) = struct.unpack_from("=I", attributes, 4)
        found.append(f"id {current}")


def raise_loopback() -> None:
    """Set `lo` of the calling thread's network namespace up."""
    set_flags, flag_up = 0x8914, 0x1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, set_flags, struct.pack("16sh14x", b"lo", flag_up))
