"""UDP flows: each a socket of its own that talks to whoever answered it first.

Task: ``targets`` [[host, port]...], ``flows``, ``rate`` (datagrams a second of all
together), ``life`` (datagrams until a flow ends and another takes its place, less for the first
flows, which are of all ages; 0: never), ``window`` (datagrams under way at once, so that no
receive buffer overflows: a loss is then the system's, not the load's; what can't be sent for that
is made up for, or counted as skipped), ``timeout`` (s),
``first_source`` (source port that the first flow has; two processes that share a target need
ranges of their own).

The first answer to a flow names its owner. An answer by any other process or worker
is counted as misrouted, and the flow stays its first owner's: a server that keeps
state for its flows, which is why anybody needs this, has lost the flow then.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from sockway.lab.load.harness import Control, run
from sockway.lab.tally import Outcome

LAST_SOURCE = 65_000
TICK = 0.005
"""Seconds; what has become due meanwhile is sent then."""
_ROUNDING = 1e-6
"""Of a tick: sums of floating-point numbers are not exact."""


@dataclass(frozen=True)
class Task:
    """What the flows of this process do; see the head of this file."""

    targets: list[tuple[str, int]]
    flows: int = 1000
    rate: float = 4000.0
    life: int = 0
    window: int = 200
    timeout: float = 2.0
    first_source: int = 10_000


class Flow:
    """One flow: a connected socket with at most one datagram under way."""

    __slots__ = ("count", "due", "owner", "sent_at", "sock", "target")

    def __init__(self, target: tuple[str, int], source: int) -> None:
        """A flow to *target* from port *source*; raises OSError if that is taken."""
        self.target = target
        self.owner: bytes | None = None  # pid, generation and worker, as they came
        self.count = 0
        self.due = 0.0
        self.sent_at = 0.0
        self.sock = socket.socket(
            socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_DGRAM
        )
        self.sock.setblocking(False)
        try:
            self.sock.bind(("", source))
            self.sock.connect(target)
        except OSError:
            self.sock.close()
            raise


class Schedule:
    """When each datagram is due: at the tick at which, or before which, its turn comes."""

    def __init__(self, rate: float, start: float) -> None:
        """So many a second from *start* on."""
        self._rate = rate
        self._start = start
        self._taken = 0

    def take(self, now: float) -> float | None:
        """The moment at which the next datagram was due; None if none is yet."""
        due = self._due(self._taken + 1)
        if due > now:
            return None
        self._taken += 1
        return due

    def skip(self, now: float, most: int) -> int:
        """Leave out what is due beyond so many, for it can't be made up for; how many that is."""
        ticks = math.floor((now - self._start) / TICK + _ROUNDING)
        behind = int(ticks * TICK * self._rate + _ROUNDING) - self._taken
        skipped = max(behind - most, 0)
        self._taken += skipped
        return skipped

    def next_tick(self, now: float) -> float:
        """The first tick after *now*."""
        return self._start + (math.floor((now - self._start) / TICK + _ROUNDING) + 1) * TICK

    def _due(self, number: int) -> float:
        return self._start + math.ceil(number / self._rate / TICK - _ROUNDING) * TICK


class Flows:
    """All flows of the process, taken in turn."""

    def __init__(self, task: Task, control: Control) -> None:
        """Open the flows; none has sent yet."""
        self.task = task
        self.control = control
        self.loop = asyncio.get_running_loop()
        self.sources = itertools.cycle(range(task.first_source, LAST_SOURCE))
        self.idle: deque[Flow] = deque()
        self.waiting: dict[Flow, None] = {}  # in the order in which they were sent
        for number in range(task.flows):
            turn, place = divmod(number, len(task.targets))
            host, port = task.targets[place]
            # Not all in step: at any time there are flows of any age.
            self._open((host, port), turn % task.life if task.life else 0)

    def _open(self, target: tuple[str, int], age: int = 0) -> None:
        # Source ports in turn: one that the kernel chose might be that of a flow which has
        # just ended, and the two would be the same flow to everybody but this client.
        while True:
            with contextlib.suppress(OSError):
                flow = Flow(target, next(self.sources))
                break
        flow.count = age
        self.loop.add_reader(flow.sock.fileno(), self._received, flow)
        self.idle.append(flow)

    def close(self, flow: Flow) -> None:
        """End *flow*."""
        self.loop.remove_reader(flow.sock.fileno())
        flow.sock.close()

    def _done(self, flow: Flow) -> None:
        """*flow* has its answer, or none will come: it waits for its next turn."""
        self.waiting.pop(flow, None)
        if self.task.life and flow.count >= self.task.life:
            self.close(flow)
            self._open(flow.target)
        else:
            self.idle.append(flow)

    def send(self, flow: Flow, due: float) -> None:
        """Send the next datagram of *flow*, which is *due* at that moment."""
        flow.count += 1
        flow.due = due
        flow.sent_at = time.monotonic()
        self.waiting[flow] = None
        # An ICMP error on the datagram before makes send() fail; the next succeeds.
        with contextlib.suppress(ConnectionRefusedError):
            flow.sock.send(b"%d" % flow.count)
            return
        flow.sock.send(b"%d" % flow.count)

    def _received(self, flow: Flow) -> None:
        """Judge an answer: by whom is it?"""
        try:
            answer = flow.sock.recv(2048)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            self._failed(flow, Outcome.LOST, "refused")
            return
        owner, _, count = answer.rpartition(b" ")
        if flow not in self.waiting or int(count) != flow.count:
            return  # late: it was counted as lost already
        if flow.owner is None:
            flow.owner = owner
            self.control.tally.answered_by[owner.split()[1].decode()] += 1
        if owner == flow.owner:
            self.control.count(Outcome.OK, flow.due)
        else:
            self.control.count(Outcome.MISROUTED, flow.due)
            self.control.tally.note("misrouted: an answer of another worker")
        self._done(flow)

    def _failed(self, flow: Flow, outcome: Outcome, words: str) -> None:
        if flow in self.waiting:
            self.control.count(outcome, flow.due)
            self.control.tally.note(f"{outcome}: {words}")
            self._done(flow)

    def expire(self) -> None:
        """Count what has waited too long for its answer as lost."""
        limit = time.monotonic() - self.task.timeout
        while self.waiting and (flow := next(iter(self.waiting))).sent_at < limit:
            self._failed(flow, Outcome.LOST, "no answer")


async def work(fields: dict[str, Any], control: Control) -> None:
    """Run all flows of this process."""
    task = Task(**fields)
    flows = Flows(task, control)
    schedule = Schedule(task.rate, time.monotonic())
    while not control.stopping.is_set():
        while flows.idle and len(flows.waiting) < task.window:
            due = schedule.take(time.monotonic())
            if due is None:
                break
            flows.send(flows.idle.popleft(), due)
        control.tally.skipped += schedule.skip(time.monotonic(), task.window)
        flows.expire()
        await asyncio.sleep(max(schedule.next_tick(time.monotonic()) - time.monotonic(), 0.0))
    control.tally.skipped += schedule.skip(time.monotonic(), 0)
    deadline = time.monotonic() + task.timeout + 1
    while flows.waiting and time.monotonic() < deadline:
        flows.expire()
        await asyncio.sleep(TICK)
    for flow in [*flows.idle, *flows.waiting]:
        flows.close(flow)


if __name__ == "__main__":
    run(work)
