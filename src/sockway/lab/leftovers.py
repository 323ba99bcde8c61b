"""What a killed experiment leaves on the host, taken away by its names."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from sockway.balancer.stamping import Stamping
from sockway.errors import SockwayError
from sockway.lab import stamped
from sockway.lab.cputime import remove_groups
from sockway.lab.marks import prefix
from sockway.lab.network import remove_of_run


def sweep(mark: str) -> None:
    """Remove what is left of a run; its processes have ended.

    Nothing is raised: it comes after what the experiment has to say.
    """
    remove_of_run(mark)
    ours = prefix(mark)
    with contextlib.suppress(SockwayError):
        for name in Stamping.names():
            if name.startswith(ours):
                stamped.remove(name)
    remove_groups([group for mount in _group_mounts() for group in mount.glob(f"{ours}*/")])
    for directory in Path(tempfile.gettempdir()).glob(f"{ours}*/"):
        shutil.rmtree(directory, ignore_errors=True)


def _group_mounts() -> list[Path]:
    """Where hierarchies of control groups are, of either version."""
    lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    return [Path(line.split()[1]) for line in lines if line.split()[2] in {"cgroup", "cgroup2"}]


__all__ = ["sweep"]
