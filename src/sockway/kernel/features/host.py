"""What the host gives this process: capabilities, mounts, limits, settings."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sockway.kernel import bpffs
from sockway.kernel.features.feature import Probe, missing

CAP_NET_ADMIN: Final = 12
CAP_SYS_ADMIN: Final = 21
CAP_PERFMON: Final = 38
CAP_BPF: Final = 39
_NOFILE: Final = 4096
"""A generation of 64 workers with 16 VIPs has 1024 sockets, and two of them live at once."""

_AS_ROOT: Final = "run as root, or give it: setcap, AmbientCapabilities= of systemd, capabilities"


def probes(root: Path) -> list[Probe]:
    """All questions about the host.

    Args:
        root: the directory in bpffs that is to hold the services.

    """
    return [
        Probe("CAP_BPF", "loading programs, making maps", f"{_AS_ROOT} of the container",
              _capability(CAP_BPF), required=True),
        Probe("CAP_PERFMON", "programs that compute with pointers", f"{_AS_ROOT} of the container",
              _capability(CAP_PERFMON), required=True),
        Probe("CAP_SYS_ADMIN", "maps by their number, mounting bpffs, namespaces",
              f"{_AS_ROOT} of the container", _capability(CAP_SYS_ADMIN), required=True),
        Probe("CAP_NET_ADMIN", "XDP and sock_ops programs", f"{_AS_ROOT} of the container",
              _capability(CAP_NET_ADMIN)),
        Probe("bpffs", "state that outlives its process", "mount it: mount -t bpf bpf /sys/fs/bpf",
              lambda: _bpffs(root), required=True),
        Probe("cgroup v2", "stamps in TCP options",
              "mount it: mount -t cgroup2 none /sys/fs/cgroup", _cgroup),
        Probe("open files", "a socket for each worker and VIP, of two generations at once",
              f"raise it to {_NOFILE}: ulimit -n, LimitNOFILE= of systemd", _files),
        Probe("locked memory", "maps, before Linux 5.11",
              "lift it: ulimit -l unlimited, LimitMEMLOCK=infinity of systemd", _memlock),
        Probe("net.ipv4.tcp_migrate_req", "nothing: the router migrates by itself", "",
              _migrate_setting),
    ]  # fmt: skip


def has_capability(number: int) -> bool:
    """Whether a capability is in this process's effective set."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> number & 1)


def cgroup2_mount() -> Path | None:
    """Where a cgroup hierarchy of version 2 is mounted, if anywhere."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _device, point, kind, *_rest = line.split()
        if kind == "cgroup2":
            # Octal escapes stand for blanks and backslashes (proc(5)).
            return Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point))
    return None


def _capability(number: int) -> Callable[[], str]:
    def run() -> str:
        if has_capability(number):
            return "effective"
        # capabilities(7): CAP_SYS_ADMIN stands in for the two that were split off it.
        if number in {CAP_BPF, CAP_PERFMON} and has_capability(CAP_SYS_ADMIN):
            return "by CAP_SYS_ADMIN"
        raise missing(f"user {os.geteuid()} lacks it")

    return run


def _bpffs(root: Path) -> str:
    if bpffs.is_bpffs(root):
        return f"{root} is on it"
    if not root.is_relative_to(bpffs.DEFAULT_MOUNT):
        raise missing(f"{root} is not on it")
    known = Path("/proc/filesystems").read_text(encoding="ascii")
    if not re.search(r"\tbpf$", known, re.MULTILINE) or not bpffs.DEFAULT_MOUNT.is_dir():
        raise missing("the kernel has none")
    if not has_capability(CAP_SYS_ADMIN):
        raise missing(f"nothing is mounted at {bpffs.DEFAULT_MOUNT}")
    return f"not at {bpffs.DEFAULT_MOUNT} yet; mounted with the first service"


def _cgroup() -> str:
    mount = cgroup2_mount()
    if mount is None:
        raise missing("not mounted")
    return f"at {mount}"


def _files() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{_limit(soft)}, may be raised to {_limit(hard)}"
    if soft != resource.RLIM_INFINITY and soft < _NOFILE:
        raise missing(found)
    return found


def _memlock() -> str:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return "unlimited"
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if release >= (5, 11):
        return f"{_limit(soft)} octets, which do not count: maps are charged to the cgroup"
    raise missing(f"{_limit(soft)} octets")


def _migrate_setting() -> str:
    try:
        path = Path("/proc/sys/net/ipv4/tcp_migrate_req")
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return "this kernel has no such setting"


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
