"""Draining: an old generation finishing what it has.

Nothing is forced here. A drain watches until the generation has nothing left or the deadline is
reached; what then happens to its processes is for whoever runs them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sockway.sockets.flows import flows_by_generation
from sockway.sockets.owners import holders, tcp_load

if TYPE_CHECKING:
    from sockway.sockets.generation import Generation

INTERVAL: Final = 0.2
"""Seconds between two looks."""
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
    """Looks at one generation again and again, and remembers what a look alone can't tell."""

    def __init__(self, generation: Generation) -> None:
        """Start the clock."""
        self._generation = generation
        self._started = self._grown_at = time.monotonic()
        self._packets = -1
        self._pids: set[int] = set()

    def look(self) -> DrainProgress:
        """What the generation has now."""
        generation = self._generation
        now = time.monotonic()
        packets = self._packets
        cookies: frozenset[int] = frozenset()
        flows = 0
        if generation.is_open:
            cookies = frozenset(generation.live_sockets().values())
            packets = sum(count.packets for count in generation.counts())
            if generation.has_udp:
                octet = generation.number & 0xFF
                flows = flows_by_generation(generation.service.state, SEEN_WITHIN)[octet]
        if packets != self._packets:
            self._packets, self._grown_at = packets, now
        self._pids |= holders(generation.socket_inodes(cookies))
        load = tcp_load(generation.tcp_ports, cookies, self._pids)
        return DrainProgress(
            elapsed=now - self._started,
            accept_queue=load.accept_queue,
            connections=load.connections,
            unread=load.unread,
            flows=flows,
            packets=max(packets, 0),
            quiet=now - self._grown_at,
        )


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
