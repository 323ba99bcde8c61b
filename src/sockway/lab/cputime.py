"""CPU time of the processes of a system, those that have ended included.

They are started in a control group of their own (version 2, which counts time whether or not it has
a cpu controller), and so is what they start.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sockway.kernel.features.host import cgroup2_mount
from sockway.lab.marks import prefix


@contextlib.contextmanager
def cgroup(name: str) -> Iterator[Path | None]:
    """A control group, gone afterwards; None where there are none."""
    mount = cgroup2_mount()
    path = mount / f"{prefix()}{name}" if mount else None
    if path is not None:
        try:
            path.mkdir()
        except OSError:
            path = None
    try:
        yield path
    finally:
        if path is not None:
            remove_groups([path])


def remove_groups(groups: Iterable[Path], patience: float = 5.0) -> None:
    """Remove control groups when their processes are gone, which takes a moment after the end."""
    deadline = time.monotonic() + patience
    for group in groups:
        while group.exists():
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)


def enter(path: Path | None) -> Callable[[], None] | None:
    """What a new process does to be in a group before it becomes its program."""
    if path is None:
        return None
    file = f"{path}/cgroup.procs"

    def join() -> None:
        with open(file, "w", encoding="ascii") as procs:  # noqa: PTH123 - after a fork: the least
            procs.write("0")

    return join


def used_by(pid: int) -> float:
    """Seconds of CPU time that a process has used; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def used(path: Path | None) -> float | None:
    """Seconds of CPU time that a group has used; None where that is not known."""
    if path is None:
        return None
    for line in (path / "cpu.stat").read_text("ascii").splitlines():
        name, _, value = line.partition(" ")
        if name == "usage_usec":
            return int(value) / 1e6
    return None
