"""UDP flows: each a socket of its own that talks to whoever answered it first.

Task: ``targets`` [[host, port]...], ``flows``, ``rate`` (datagrams a second of all
together), ``life`` (datagrams until a flow ends and another takes its place, less for the first
flows, which are of all ages; 0: never), ``window`` (datagrams under way at once, so that no
receive buffer overflows: a loss is then the system's, not the load's), ``timeout`` (s),
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
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from sockway.lab.load.harness import Control, run
from sockway.lab.tally import Outcome

LAST_SOURCE = 65_000


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

    __slots__ = ("count", "owner", "sent_at", "sock", "target")

    def __init__(self, target: tuple[str, int], source: int) -> None:
        """A flow to *target* from port *source*; raises OSError if that is taken."""
        self.target = target
        self.owner: bytes | None = None  # pid, generation and worker, as they came
        self.count = 0
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

    def send(self, flow: Flow) -> None:
        """Send the next datagram of *flow*."""
        flow.count += 1
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
            self.control.count(Outcome.OK, flow.sent_at)
        else:
            self.control.count(Outcome.MISROUTED)
            self.control.tally.note("misrouted: an answer of another worker")
        self._done(flow)

    def _failed(self, flow: Flow, outcome: Outcome, words: str) -> None:
        if flow in self.waiting:
            self.control.count(outcome)
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
    start = time.monotonic()
    sent = 0
    tick = 0.005
    while not control.stopping.is_set():
        now = time.monotonic()
        allowed = int((now - start) * task.rate) - sent
        if allowed > task.window:  # behind the schedule: go on from now, without a burst
            start += (allowed - task.window) / task.rate
            allowed = task.window
        while allowed > 0 and flows.idle and len(flows.waiting) < task.window:
            flows.send(flows.idle.popleft())
            sent += 1
            allowed -= 1
        flows.expire()
        await asyncio.sleep(tick)
    deadline = time.monotonic() + task.timeout + 1
    while flows.waiting and time.monotonic() < deadline:
        flows.expire()
        await asyncio.sleep(tick)
    for flow in [*flows.idle, *flows.waiting]:
        flows.close(flow)


if __name__ == "__main__":
    run(work)
