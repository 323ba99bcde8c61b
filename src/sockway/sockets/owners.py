"""Which processes hold a generation's sockets, and what they still serve.

A connection that was accepted does not tell which listener it came from, so connections are
counted by process: those that hold the generation's listeners or UDP sockets now, and those that
held them when last looked at (a draining server closes its listeners first).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from sockway.kernel import sockdiag
from sockway.wire.addresses import Vip

_PREFIX = "socket:["


def socket_inodes(pid: int) -> set[int]:
    """Inodes of the sockets that a process has open; none if it is gone or not ours to see."""
    directory = f"/proc/{pid}/fd"
    inodes: set[int] = set()
    try:
        descriptors = os.listdir(directory)  # noqa: PTH208 - thousands of them, in each look
    except OSError:
        return inodes
    for descriptor in descriptors:
        try:
            target = os.readlink(f"{directory}/{descriptor}")  # noqa: PTH115 - likewise
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


def processes_of(vips: Iterable[Vip], cookies: Collection[int]) -> set[int]:
    """Process ids that have any of the sockets with these cookies open, this process left out."""
    ports: dict[str, set[int]] = {"tcp": set(), "udp": set()}
    for vip in vips:
        ports[vip.protocol].add(vip.port)
    inodes: set[int] = set()
    if ports["tcp"]:
        inodes |= {s.inode for s in sockdiag.listeners(ports["tcp"]) if s.cookie in cookies}
    if ports["udp"]:
        inodes |= sockdiag.udp_inodes(cookies, ports["udp"])
    return holders(inodes)


def open_sockets(pids: Iterable[int]) -> set[int]:
    """Inodes of all sockets that these processes have open."""
    return {inode for pid in pids for inode in socket_inodes(pid)}
