"""Which processes hold a generation's sockets, and what they still serve.

A connection that was accepted does not tell which listener it came from, so connections are
counted by process: those that hold the generation's listeners or UDP sockets now, and those that
held them when last looked at (a draining server closes its listeners first).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sockway.kernel import sockdiag

_PREFIX = "socket:["


@dataclass(frozen=True)
class TcpLoad:
    """What TCP has for a generation at one moment."""

    accept_queue: int
    """Connections that are established and not accepted yet."""
    connections: int
    """Accepted connections of the generation's processes, on its ports."""
    unread: int
    """Those among them that have bytes which the process has not read."""


def socket_inodes(pid: int) -> set[int]:
    """Inodes of the sockets that a process has open; none if it is gone or not ours to see."""
    directory = f"/proc/{pid}/fd"
    inodes: set[int] = set()
    try:
        descriptors = os.listdir(directory)
    except OSError:
        return inodes
    for descriptor in descriptors:
        try:
            target = os.readlink(f"{directory}/{descriptor}")
        except OSError:
            continue
        if target.startswith(_PREFIX):
            inodes.add(int(target[len(_PREFIX) : -1]))
    return inodes


def holders(inodes: Collection[int]) -> set[int]:
    """Process ids that have any of these sockets open, this process left out."""
    wanted = set(inodes)
    if not wanted:
        return set()
    own = os.getpid()
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid for pid in pids if pid != own and wanted & socket_inodes(pid)}


def tcp_load(ports: Iterable[int], cookies: Collection[int], pids: Iterable[int]) -> TcpLoad:
    """What the listeners with these cookies and these processes have on these ports."""
    wanted_ports = set(ports)
    if not wanted_ports:
        return TcpLoad(0, 0, 0)
    queued = sum(
        listener.accept_queue for listener in sockdiag.listeners(wanted_ports) if listener.cookie in cookies
    )
    mine: set[int] = set()
    for pid in pids:
        mine |= socket_inodes(pid)
    connections = [
        c for c in sockdiag.established(wanted_ports) if c.inode in mine
    ]
    return TcpLoad(queued, len(connections), sum(1 for c in connections if c.unread))
