"""Cgroups of version 2, as far as programs are attached to them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sockway.errors import ConfigError, FeatureError
from sockway.kernel import bpffs
from sockway.kernel.features.host import cgroup2_mount
from sockway.kernel.pins import permitted

_PROCESSES: Final = "cgroup.procs"
_MAGIC: Final = 0x63677270  # CGROUP2_SUPER_MAGIC in <linux/magic.h>


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


@contextlib.contextmanager
def opened(place: Path) -> Iterator[tuple[int, int]]:
    """A cgroup's descriptor and its number in the kernel, while the block lasts.

    Raises:
        ConfigError: it is not there, or is none of version 2.
        FeatureError: there are none at all.
        PermissionDenied: this process may not open it.

    """
    hint = f"cgroups of version 2 are directories in {mount()}"
    with permitted(place):
        try:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            raise
        except OSError as error:
            raise ConfigError(f"can't open cgroup {place}: {error.strerror}", hint=hint) from None
    try:
        if bpffs.magic(place) != _MAGIC:
            raise ConfigError(f"{place} is no cgroup of version 2", hint=hint)
        yield fd, os.fstat(fd).st_ino
    finally:
        os.close(fd)


def path_of(number: int) -> Path | None:
    """The directory of a cgroup by its number in the kernel; None: it is gone."""
    for directory, _, _ in os.walk(mount()):
        with contextlib.suppress(FileNotFoundError):
            if Path(directory).stat().st_ino == number:
                return Path(directory)
    return None


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
        PermissionDenied: this process may not be moved.

    """
    home = mount() / _own().lstrip("/")
    with permitted(place):
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
        PermissionDenied: this process may not make one.

    """
    # Right below the root, where the rule against processes in inner cgroups does not matter.
    place = mount() / name
    with permitted(place):
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


__all__ = ["inside", "mount", "move", "opened", "path_of", "temporary"]
