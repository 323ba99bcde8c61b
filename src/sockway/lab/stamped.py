"""Stamps in a lab: each host's processes in a cgroup of their own, with the program on it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from sockway.balancer.stamping import PREFIX, Stamping, StampingSpec
from sockway.balancer.state import DEFAULT_ROOT, ROOT_VARIABLE
from sockway.errors import NotFoundError
from sockway.kernel import cgroup
from sockway.kernel.features.host import cgroup2_mount

LAB: Final = ("10.77.0.0/16", "fd77::/32")
"""Addresses of a lab's hosts."""
CLIENTS: Final = "clients"
SERVER_KIND: Final = 0xB6
"""Of options that a lab's servers write."""
CLIENT_KIND: Final = 0xB7
"""Of those that its clients write and its balancers read."""


def enter(lab: str, node: str) -> Callable[[], None]:
    """What a process calls to be in a host's cgroup, which is made now."""
    place = _made(lab, node)
    return lambda: cgroup.move(place)


def stamp_server(lab: str, node: str, server_id: int, port: int) -> None:
    """Stamp connections to a port of a host.

    Raises:
        FeatureError: there are no cgroups of version 2 here.

    """
    peers = [ip_network(each) for each in LAB]
    Stamping.up(
        StampingSpec(
            name=f"{lab}-{node}", cgroup=_made(lab, node), server_id=server_id,
            server_ports=[port], peers=peers, server_kind=SERVER_KIND, client_kind=CLIENT_KIND,
        )
    )  # fmt: skip


@contextlib.contextmanager
def as_client(lab: str, vips: list[str], port: int) -> Iterator[Stamping]:
    """Have sockets that this process makes meanwhile be those of a client that stamps.

    Raises:
        FeatureError: there are no cgroups of version 2 here.

    """
    place = _made(lab, CLIENTS)
    spec = StampingSpec(
        name=f"{lab}-{CLIENTS}", cgroup=place, client_ports=[port],
        peers=[ip_network(vip) for vip in vips], server_kind=SERVER_KIND, client_kind=CLIENT_KIND,
    )  # fmt: skip
    stamping = Stamping.up(spec)
    try:
        with cgroup.inside(place):
            yield stamping
    finally:
        stamping.down()


def forget(lab: str) -> None:
    """Take off and remove what was made for a lab; its processes have ended."""
    mount = cgroup2_mount()
    if mount is None:
        return
    # A host that is stamped has a cgroup here: stamps of other names are not the lab's.
    for place in [*mount.glob(f"sockway-{lab}/*/"), *mount.glob(f"sockway-{lab}/")]:
        if place.name != f"sockway-{lab}":
            remove(f"{lab}-{place.name}")
        with contextlib.suppress(OSError):
            place.rmdir()


def remove(name: str) -> None:
    """Take off the stamps of this name, or what a killed process left of them."""
    with contextlib.suppress(NotFoundError):
        Stamping.existing(name).down()
    root = Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)
    shutil.rmtree(root / f"{PREFIX}{name}", ignore_errors=True)


def _made(lab: str, node: str) -> Path:
    place = cgroup.mount() / f"sockway-{lab}" / node
    place.mkdir(parents=True, exist_ok=True)
    return place


__all__ = ["CLIENT_KIND", "SERVER_KIND", "as_client", "enter", "forget", "remove", "stamp_server"]
