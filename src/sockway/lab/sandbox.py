"""A network and mount namespace of the experiment's own.

The process that runs an experiment moves into fresh namespaces itself, with the
loopback device up and a private bpffs. Whatever happens to it after that, with its
last process the namespaces go, and the mounts, pins and routes in them. What would
outlive it are processes that lost their parent, as Sockway's workers may by design:
the experiment adopts those (PR_SET_CHILD_SUBREAPER) and ends them when it leaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sockway.errors import KernelError, PermissionDenied
from sockway.lab.marks import prefix

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
IFF_UP = 1

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Sandbox:
    """Where the experiment is: its directory, and the environment for its processes."""

    directory: Path
    environment: dict[str, str]


def _check(result: int, what: str) -> None:
    if result == 0:
        return
    error = ctypes.get_errno()
    reason = os.strerror(error)
    if error == 1:  # EPERM
        raise PermissionDenied(f"{what}: {reason}", hint="run the lab as root")
    raise KernelError(f"{what}: {reason}")


def loopback_up() -> None:
    """Bring up ``lo`` in the current network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies, however that dies."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def adopt_orphans() -> None:
    """Make this process the parent of what its children leave, for `end_children` to find."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "adoption of orphans")


def raise_file_limit(wanted: int = 20_000) -> int:
    """Raise the soft limit of open files towards *wanted*, and say what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    return soft


@contextlib.contextmanager
def sandbox() -> Iterator[Sandbox]:
    """Move this process into fresh namespaces; call it before any thread is started.

    There is no way back for the process: leaving ends the processes it started and
    removes the directory, and the namespaces go with the process itself.

    Raises `PermissionDenied` without root, `KernelError` where a step fails.
    """
    _check(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS), "new network and mount namespace")
    # Mounts made here must not reach the rest of the machine.
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "private mounts")
    adopt_orphans()
    loopback_up()
    raise_file_limit()
    # As Ctrl-C, so that what is below is undone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix=prefix(), ignore_cleanup_errors=True) as name:
        directory = Path(name)
        # Workers may run as another user, and must reach their configuration.
        directory.chmod(0o755)
        bpffs = directory / "bpf"
        runtime = directory / "run"
        bpffs.mkdir()
        runtime.mkdir()
        _check(_libc.mount(b"bpf", bytes(bpffs), b"bpf", 0, None), f"bpffs on {bpffs}")
        environment = os.environ | {
            "SOCKWAY_BPFFS": str(bpffs),
            "SOCKWAY_RUNTIME": str(runtime),
            "PYTHONUNBUFFERED": "1",
        }
        for unwanted in ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
            environment.pop(unwanted, None)
        try:
            yield Sandbox(directory, environment)
        finally:
            end_children()
            _libc.umount2(bytes(bpffs), 2)  # MNT_DETACH


def children() -> list[int]:
    """Process ids of this process's children, adopted ones included."""
    try:
        words = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except OSError:
        return []
    return [int(word) for word in words]


def end_children(patience: float = 5.0) -> None:
    """End all children, the orphans that come up meanwhile included; wait *patience* s at most."""
    deadline = time.monotonic() + patience
    while (pids := children()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
