"""A fixed share of one CPU for a process: so a machine with few cores can stand for one with many.

By the kernel where that can be had: cgroup version 2 (`cpu.max`) or version 1 (`cpu.cfs_quota_us`).
Otherwise the process keeps to its share by itself: it sleeps when it has used more.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sockway.kernel.features.host import cgroup2_mount

_PERIOD: Final = 100_000
"""Microseconds; the kernel gives out the budget once in each."""
_BURST: Final = 0.002
"""Seconds of CPU time that a process which keeps to its share by itself may be ahead."""


@dataclass
class Budget:
    """One process's share."""

    share: float
    group: Path | None
    """Its control group; None where it keeps to its share by itself."""
    _began: float = 0.0
    _used: float = 0.0

    def enter(self) -> None:
        """Be bound by it from now on: called by the process itself."""
        if self.group is not None:
            (self.group / "cgroup.procs").write_text("0")
        self._began, self._used = time.monotonic(), time.process_time()

    def pace(self) -> None:
        """Called between batches of work: wait, if nobody else makes this process wait."""
        if self.group is None:
            used = time.process_time() - self._used
            ahead = used / self.share - (time.monotonic() - self._began)
            if ahead > _BURST / self.share:
                time.sleep(ahead - _BURST / self.share)
            elif ahead < -_BURST / self.share:  # what was not used is not saved up
                self._began = time.monotonic() - used / self.share - _BURST / self.share


@contextlib.contextmanager
def budgets(count: int, share: float) -> Iterator[list[Budget]]:
    """Budgets for so many processes, gone when the block ends; the processes have to be, too."""
    groups: list[Path] = []
    with contextlib.ExitStack() as stack:
        mount = _hierarchy()
        for number in range(count if mount else 0):
            assert mount is not None  # noqa: S101 - else there are none to be made
            group = mount / f"sockway-lab-{os.getpid()}-{number}"
            try:
                group.mkdir()
                stack.callback(_remove, group)
                _limit(group, share)
            except OSError:
                groups = []
                break
            groups.append(group)
        yield [Budget(share, groups[number] if groups else None) for number in range(count)]


def _hierarchy() -> Path | None:
    """Where groups can have a share of the CPU."""
    unified = cgroup2_mount()
    if unified is not None and "cpu" in _words(unified / "cgroup.controllers"):
        if "cpu" not in _words(unified / "cgroup.subtree_control"):
            with contextlib.suppress(OSError):
                (unified / "cgroup.subtree_control").write_text("+cpu")
        if "cpu" in _words(unified / "cgroup.subtree_control"):
            return unified
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _device, point, kind, options, *_rest = line.split()
        if kind == "cgroup" and "cpu" in options.split(","):
            return Path(point)
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").split()
    except OSError:
        return []


def _limit(group: Path, share: float) -> None:
    quota = int(share * _PERIOD)
    if (group / "cpu.max").exists():
        (group / "cpu.max").write_text(f"{quota} {_PERIOD}")
    else:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
        (group / "cpu.cfs_quota_us").write_text(str(quota))


def _remove(group: Path, patience: float = 5.0) -> None:
    """Remove it when its process is gone, which takes a moment after it was ended."""
    deadline = time.monotonic() + patience
    while group.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.02)
