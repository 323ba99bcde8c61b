"""Named network namespaces, as `ip netns` has them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

from sockway.errors import KernelError, StateError
from sockway.kernel import Netns
from sockway.kernel.ffi import error_of

NAMESPACES: Final = Path("/run/netns")
_BIND, _REC, _SHARED, _DETACH = 0x1000, 0x4000, 1 << 20, 2
"""MS_BIND, MS_REC, MS_SHARED and MNT_DETACH of <linux/mount.h>."""

_libc = ctypes.CDLL(None, use_errno=True)


def create(name: str, made: list[str]) -> None:
    """Make one; `made` has its name from before it is there, for whoever has to undo this.

    Raises:
        StateError: there is one of this name, which somebody else made.
        KernelError: the kernel refuses it.

    """
    _share()
    place = NAMESPACES / name
    made.append(name)
    try:
        place.touch(mode=0o444, exist_ok=False)
    except FileExistsError:
        made.remove(name)
        raise _in_the_way(name) from None
    with Netns.create() as namespace:
        _mount(f"/proc/self/fd/{namespace.fd}", place, _BIND)


def refuse_if_there(name: str) -> None:
    """See to it that nobody has a namespace of this name.

    Raises:
        StateError: somebody has.

    """
    if (NAMESPACES / name).exists():
        raise _in_the_way(name)


def remove(name: str) -> None:
    """Remove one; no error if it is not there."""
    _libc.umount2(bytes(NAMESPACES / name), _DETACH)
    (NAMESPACES / name).unlink(missing_ok=True)


def _share() -> None:
    """Have the directory as `ip netns` has it: a mount, so that other mount namespaces see more."""
    NAMESPACES.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        _mount("", NAMESPACES, _SHARED | _REC)
    except KernelError:
        _mount(str(NAMESPACES), NAMESPACES, _BIND | _REC)
        _mount("", NAMESPACES, _SHARED | _REC)


def _mount(what: str, place: Path, flags: int) -> None:
    if _libc.mount(what.encode(), bytes(place), b"none", flags, None):
        raise error_of(ctypes.get_errno(), f"mount {place}")


def _in_the_way(name: str) -> StateError:
    return StateError(
        f"there is a network namespace {name}, which is no lab's that is up",
        hint=f"give the lab another name, or remove it: ip netns del {name}",
    )


__all__ = ["NAMESPACES", "create", "refuse_if_there", "remove"]
