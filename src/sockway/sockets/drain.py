"""Draining: an old generation finishing what it has.

Nothing is forced here. A drain watches until the generation has nothing left or the deadline is
reached; what then happens to its processes is for whoever runs them.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sockway.kernel import sockdiag
from sockway.sockets.binding import family_of
from sockway.sockets.flows import flows_by_generation
from sockway.sockets.owners import open_sockets, processes_of

if TYPE_CHECKING:
    from sockway.sockets.generation import Generation

INTERVAL: Final = 0.2
"""Seconds between two looks."""
_ASK_AGAIN: Final = 2.0
"""Seconds between two searches for the processes that hold the sockets."""
SEEN_WITHIN: Final = 10.0
"""A flow without a packet for so many seconds holds up no drain."""


@dataclass(frozen=True)
class DrainProgress:
    """What a generation still has, at one moment."""

    elapsed: float
    """Seconds since the drain began."""
    accept_queue: int
    """TCP connections that wait to be accepted."""
    connections: int
    """TCP connections that its processes have accepted and not closed."""
    unread: int
    """Those among them with bytes that the process has not read yet."""
    flows: int
    """UDP flows of the flow table with a packet in the last seconds."""
    packets: int
    """Datagrams and connections routed to it so far."""
    quiet: float
    """Seconds since `packets` last grew."""
    expired: bool = False
    """The deadline was reached before the drain was done."""

    @property
    def settled(self) -> bool:
        """Nothing that was sent to it before the publish is still waiting to be read."""
        return not (self.accept_queue or self.unread)

    @property
    def done(self) -> bool:
        """Nothing is left: no connection, no flow."""
        return self.settled and not (self.connections or self.flows)


class DrainWatch:
    """Looks at one generation again and again, and remembers what a look alone can't tell.

    A look asks the kernel once for each TCP port. Who holds the generation's sockets is asked
    seldom, for it reads the descriptors of every process.
    """

    def __init__(self, generation: Generation) -> None:
        """Start the clock."""
        self._generation = generation
        self._started = self._grown_at = time.monotonic()
        self._asked_at = -math.inf
        self._packets = -1
        self._pids: set[int] = set()
        self._vips = vips = generation.vips if generation.is_open else []
        self._ports = {vip.port for vip in vips if vip.protocol == "tcp"}
        self._has_udp = any(vip.protocol == "udp" for vip in vips)
        self._families = sorted({family_of(vip) for vip in vips})

    def look(self) -> DrainProgress:
        """What the generation has now."""
        generation = self._generation
        now = time.monotonic()
        cookies: set[int] = set()
        packets, flows = self._packets, 0
        if generation.is_open:
            cookies = set(generation.live_sockets().values())
            packets = sum(count.packets for count in generation.counts())
            if self._has_udp:
                octet = generation.number & 0xFF
                flows = flows_by_generation(generation.service.state, SEEN_WITHIN)[octet]
        if packets != self._packets:
            self._packets, self._grown_at = packets, now
        queued, connections, unread = self._tcp(cookies, now)
        return DrainProgress(
            elapsed=now - self._started,
            accept_queue=queued,
            connections=connections,
            unread=unread,
            flows=flows,
            packets=max(packets, 0),
            quiet=now - self._grown_at,
        )

    def _tcp(self, cookies: set[int], now: float) -> tuple[int, int, int]:
        """Connections that wait, that are served, and of these those with unread bytes."""
        listeners: list[sockdiag.Listener] = []
        connections: list[sockdiag.Connection] = []
        if self._ports:
            listeners, connections = sockdiag.tcp_sockets(self._ports, self._families)
        if now - self._asked_at >= _ASK_AGAIN and cookies:
            self._pids |= processes_of(self._vips, cookies)
            self._asked_at = now
        # The inodes of the processes' sockets tell whose a connection is; none to place, none read.
        accepted = [c for c in connections if c.inode]
        mine = open_sockets(self._pids) if accepted else set()
        served = [c for c in accepted if c.inode in mine]
        waiting = sum(each.accept_queue for each in listeners if each.cookie in cookies)
        return waiting, len(served), sum(1 for c in served if c.unread)


def draining(
    generation: Generation, deadline: float, interval: float = INTERVAL
) -> Iterator[DrainProgress]:
    """Look until nothing is left or `deadline` seconds have gone by; the last look is yielded too.

    Between two looks the caller's thread sleeps.
    """
    for progress, rest in _looks(generation, deadline, interval):
        yield progress
        time.sleep(rest)


async def adraining(
    generation: Generation, deadline: float, interval: float = INTERVAL
) -> AsyncIterator[DrainProgress]:
    """`draining` for asyncio: looks are taken in a thread, and the loop runs on in between."""
    import asyncio  # noqa: PLC0415 - costly, and the command's `status` comes through here

    looks = _looks(generation, deadline, interval)
    while (step := await asyncio.to_thread(next, looks, None)) is not None:
        progress, rest = step
        yield progress
        await asyncio.sleep(rest)


def _looks(
    generation: Generation, deadline: float, interval: float
) -> Iterator[tuple[DrainProgress, float]]:
    watch = DrainWatch(generation)
    while True:
        progress = watch.look()
        if progress.done:
            yield progress, 0.0
            return
        left = deadline - progress.elapsed
        if left <= 0:
            yield DrainProgress(**{**vars(progress), "expired": True}), 0.0
            return
        yield progress, min(interval, left)


def drain(
    generation: Generation,
    deadline: float,
    on_progress: Callable[[DrainProgress], None] | None = None,
) -> DrainProgress:
    """Wait until nothing is left or the deadline is reached, and return the last look."""
    progress: DrainProgress | None = None
    for progress in draining(generation, deadline):
        if on_progress is not None:
            on_progress(progress)
    assert progress is not None  # noqa: S101 - draining yields at least once
    return progress


async def adrain(
    generation: Generation,
    deadline: float,
    on_progress: Callable[[DrainProgress], None] | None = None,
) -> DrainProgress:
    """`drain` for asyncio."""
    progress: DrainProgress | None = None
    async for progress in adraining(generation, deadline):
        if on_progress is not None:
            on_progress(progress)
    assert progress is not None  # noqa: S101 - draining yields at least once
    return progress
