"""Cgroups of version 2, as far as programs are attached to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sockway.errors import FeatureError
from sockway.kernel.features.host import cgroup2_mount

_PROCESSES = "cgroup.procs"


def mount() -> Path:
    """Where the hierarchy of version 2 is.

    Raises:
        FeatureError: nowhere.

    """
    found = cgroup2_mount()
    if found is None:
        raise FeatureError(
            "no cgroups of version 2 are mounted", hint="mount -t cgroup2 none /sys/fs/cgroup"
        )
    return found


def move(place: Path) -> None:
    """Move this process into a cgroup.

    Raises:
        OSError: it is none, or takes no processes.

    """
    (place / _PROCESSES).write_text("0", encoding="ascii")


@contextlib.contextmanager
def inside(place: Path) -> Iterator[Path]:
    """Have this process in a cgroup meanwhile: sockets that it makes belong there for good.

    Raises:
        FeatureError: there are no cgroups of version 2.

    """
    home = mount() / _own().lstrip("/")
    move(place)
    try:
        yield place
    finally:
        move(home)


@contextlib.contextmanager
def temporary(name: str) -> Iterator[Path]:
    """A cgroup that is there while the block lasts, with this process in it.

    Raises:
        FeatureError: there are no cgroups of version 2.

    """
    # Right below the root, where the rule against processes in inner cgroups does not matter.
    place = mount() / name
    place.mkdir()
    try:
        with inside(place):
            yield place
    finally:
        place.rmdir()


def _own() -> str:
    """The path of this process's cgroup, from the mount on."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    return "/"


__all__ = ["inside", "mount", "move", "temporary"]
