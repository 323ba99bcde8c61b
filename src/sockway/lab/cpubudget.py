"""A fixed share of one CPU for a process: so a machine with few cores can stand for one with many.

By the kernel where that can be had: cgroup version 2 (`cpu.max`) or version 1 (`cpu.cfs_quota_us`).
Otherwise the process keeps to its share by itself: it sleeps when it has used more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sockway.kernel.features.host import cgroup2_mount
from sockway.lab.cputime import remove_groups
from sockway.lab.marks import prefix

_PERIOD: Final = 100_000
"""Microseconds; the kernel gives out the budget once in each."""
_CONTROL: Final = "cgroup.subtree_control"
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
    with controllers_as_before(), contextlib.ExitStack() as stack:
        mount = _hierarchy()
        for number in range(count if mount else 0):
            assert mount is not None  # noqa: S101 - else there are none to be made
            group = mount / f"{prefix()}cpu-{number}"
            try:
                group.mkdir()
                stack.callback(remove_groups, [group])
                _limit(group, share)
            except OSError:
                groups = []
                break
            groups.append(group)
        yield [Budget(share, groups[number] if groups else None) for number in range(count)]


@contextlib.contextmanager
def controllers_as_before() -> Iterator[None]:
    """Have the root's groups without a share of the CPU afterwards, if they had none before."""
    unified = cgroup2_mount()
    was_on = unified is None or "cpu" in _words(unified / _CONTROL)
    try:
        yield
    finally:
        # While there are budgets of somebody else they need it: whoever is last switches it off.
        if unified and not was_on and not [*unified.glob("sockway-lab-*-cpu-*/")]:
            with contextlib.suppress(OSError):
                _switch(unified, "-cpu")


def _switch(unified: Path, word: str) -> None:
    (unified / _CONTROL).write_text(word, encoding="ascii")


def _hierarchy() -> Path | None:
    """Where groups can have a share of the CPU."""
    unified = cgroup2_mount()
    if unified is not None and "cpu" in _words(unified / "cgroup.controllers"):
        if "cpu" not in _words(unified / _CONTROL):
            with contextlib.suppress(OSError):
                _switch(unified, "+cpu")
        if "cpu" in _words(unified / _CONTROL):
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
