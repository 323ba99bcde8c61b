"""A set of servers under load, of which more and more are released at the same time.

Each server has a TCP and a UDP VIP of its own. All clients talk to all servers, so what fails while
half of the set is released is what a site's users see while half of its servers are.
"""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from sockway.lab import cputime, programs
from sockway.lab.load.process import Load
from sockway.lab.patience import patient
from sockway.lab.releasers import SYSTEMS, Plan, Releaser
from sockway.lab.sandbox import Sandbox
from sockway.lab.tally import BIN_SECONDS, RESETS, Outcome, Tally

_BOUND: Final = 900.0
"""Seconds that nothing of this lasts longer than."""
_TIMEOUT: Final = 1.0
"""Seconds without an answer that count as a loss of a datagram."""
_SETTLE: Final = 0.3
"""Seconds after the first answers; clients have started then, too."""
_HTTP_TIMEOUT: Final = 3.0
"""Seconds after which a request has failed: a SYN that is lost is sent again after one."""
ACCEPTOR: Final = "single-acceptor"
"""Serves UDP only: what is compared is who reads a VIP's datagrams."""
ACCEPTOR_WORKERS: Final = 2
TAKEOVER: Final = "takeover"
Protocol = Literal["udp", "tcp"]


@dataclass(frozen=True)
class SetPlan:
    """What is done; the same for each system."""

    servers: int = 8
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Of the servers, released at the same time; one after the other."""
    rounds: int = 3
    flows: int = 800
    datagrams: float = 3200.0
    """A second, of all flows."""
    life: int = 8
    """Datagrams of a flow, which another one follows."""
    requests: float = 600.0
    """HTTP requests a second, each on a connection of its own."""
    linger: float = 3.0
    """Seconds that old servers stay beside the new ones, if flows have not ended."""
    calm: float = 3.0
    """Seconds of datagrams alone, without releases, in which their CPU time is measured."""
    seed: int = 1

    @property
    def flow_seconds(self) -> float:
        """Time that a flow lasts."""
        return self.life * self.flows / self.datagrams

    def offered(self, protocol: Protocol) -> float:
        """Datagrams or requests a second that clients are told to send."""
        return self.datagrams if protocol == "udp" else self.requests


@dataclass(frozen=True)
class Seen:
    """What clients of one protocol saw while a part of the set was released."""

    sent: int
    failed: int
    lost: int
    misrouted: int
    resets: int

    @property
    def share(self) -> float:
        """Of what was sent, failed."""
        return self.failed / self.sent if self.sent else 0.0


@dataclass(frozen=True)
class Window:
    """One release of a part of the set."""

    share: float
    servers: int
    """That were released."""
    begin: float
    """Seconds since the epoch of the loads."""
    end: float
    """With the time in which flows that suffered from it end."""
    cpu: float | None
    """Seconds of all processes of the system, or None where that is not known."""


@dataclass
class SetCourse:
    """What became of it under one system."""

    system: str
    plan: SetPlan
    windows: list[Window] = field(default_factory=list)
    tallies: dict[Protocol, Tally] = field(default_factory=dict)
    calm: Window | None = None
    """The time before all windows: datagrams alone."""
    forwarded: int | None = None
    """Packets that socket takeover forwarded; None with the others."""

    def seen(self, window: Window, protocol: Protocol) -> Seen:
        """What clients saw of that which began in a window, whenever it ended."""
        first, last = int(window.begin / BIN_SECONDS), int(window.end / BIN_SECONDS)
        counts = {
            outcome: sum(count for number, count in bins.items() if first <= number < last)
            for outcome, bins in self.tallies[protocol].begun.items()
        }
        sent = sum(counts.values())
        return Seen(
            sent=sent,
            failed=sent - counts.get(Outcome.OK, 0),
            lost=counts.get(Outcome.LOST, 0),
            misrouted=counts.get(Outcome.MISROUTED, 0),
            resets=sum(counts.get(outcome, 0) for outcome in RESETS),
        )

    def cpu_of_a_release(self) -> list[float]:
        """CPU seconds that the release of one server took, beside what serving takes."""
        idle = [w.cpu / (w.end - w.begin) for w in self.windows if not w.servers and w.cpu]
        if not idle:
            return []
        serving = sum(idle) / len(idle)
        return [
            (window.cpu - serving * (window.end - window.begin)) / window.servers
            for window in self.windows
            if window.servers and window.cpu
        ]

    def cpu_of_datagrams(self) -> tuple[float, int] | None:
        """CPU seconds while nothing but datagrams came, and how many came."""
        if self.calm is None or not self.calm.cpu:
            return None
        sent = self.seen(self.calm, "udp").sent
        return (self.calm.cpu, sent) if sent else None


Tell = Callable[[int, int], None]
"""Told of the windows that are over, and of what has failed."""


async def run(system: str, plan: SetPlan, box: Sandbox, tell: Tell) -> SetCourse:
    """Release a growing part of the set by one system.

    Raises:
        SockwayError: a server does not start, or can't be released.
        TimeoutError: something hangs.

    """
    directory = _directory(system, box)
    with cputime.cgroup(directory.name) as group:
        servers = [
            SYSTEMS[system](_plan(system, number, plan, directory, box=box, group=group))
            for number in range(1, plan.servers + 1)
        ]
        course = SetCourse(system, plan)
        async with AsyncExitStack() as stack, asyncio.timeout(patient(_BOUND)):
            for server in servers:
                stack.push_async_callback(server.stop)
            await asyncio.gather(*(server.start() for server in servers))
            await _measure(course, servers, group, _Loads(system, plan, box, stack), tell)
            if system == TAKEOVER:
                counts = await asyncio.gather(*(server.decisions() for server in servers))
                course.forwarded = sum(each.get("forwarded", 0) for each in counts)
            # All at once, for each takes a moment.
            await asyncio.gather(*(server.stop() for server in servers))
    return course


def _directory(system: str, box: Sandbox) -> Path:
    directory = Path(tempfile.mkdtemp(prefix=f"set-{system}-", dir=box.directory))
    directory.chmod(0o755)
    return directory


def _plan(
    system: str, number: int, plan: SetPlan, parent: Path, *, box: Sandbox, group: Path | None
) -> Plan:
    directory = parent / str(number)
    directory.mkdir()
    one = system == ACCEPTOR
    return Plan(
        program=programs.accepting(number) if one else programs.pair(number),
        workers=ACCEPTOR_WORKERS if one else 1, linger=plan.linger, directory=directory,
        env=box.environment, cgroup=group,
    )  # fmt: skip


class _Loads:
    """Clients of both protocols, each in a process of its own."""

    def __init__(self, system: str, plan: SetPlan, box: Sandbox, stack: AsyncExitStack) -> None:
        """Nothing is started yet; whatever is, ends with the stack."""
        self._plan = plan
        self._box = box
        self._stack = stack
        self.protocols: tuple[Protocol, ...] = ("udp",) if system == ACCEPTOR else ("udp", "tcp")
        self.epoch = time.monotonic()
        self.running: dict[Protocol, Load] = {}

    async def start(self, protocol: Protocol) -> None:
        """Start those of a protocol, and wait until they have their first answer."""
        plan = self._plan
        hosts = [f"127.0.0.{number}" for number in range(1, plan.servers + 1)]
        tasks: dict[Protocol, tuple[str, dict[str, Any]]] = {
            "udp": ("udp", {
                "targets": [[host, 4433] for host in hosts], "flows": plan.flows,
                "life": plan.life, "timeout": patient(_TIMEOUT),
            }),
            "tcp": ("http1", {
                "targets": [[host, 8080] for host in hosts], "clients": 64,
                "timeout": patient(_HTTP_TIMEOUT),
            }),
        }  # fmt: skip
        kind, task = tasks[protocol]
        load = self.running[protocol] = await Load.start(
            kind, task | {"rate": plan.offered(protocol)},
            epoch=self.epoch, seconds=patient(_BOUND), env=self._box.environment,
        )  # fmt: skip
        self._stack.push_async_callback(load.kill)
        await load.began()

    @property
    def failed(self) -> int:
        """Up to now, about."""
        return sum(load.failed for load in self.running.values())

    async def stop(self) -> dict[Protocol, Tally]:
        """End them; what they counted."""
        tallies = await asyncio.gather(*(load.stop() for load in self.running.values()))
        return dict(zip(self.running, tallies, strict=True))


async def _measure(
    course: SetCourse, servers: list[Releaser], group: Path | None, loads: _Loads, tell: Tell
) -> None:
    plan = course.plan
    chance = random.Random(plan.seed)
    await loads.start("udp")
    course.calm = await _calm(group, loads, plan.calm)
    for protocol in loads.protocols[1:]:
        await loads.start(protocol)
    await asyncio.sleep(_SETTLE)
    for _ in range(plan.rounds):
        for share in plan.shares:
            chosen = chance.sample(servers, round(share * len(servers)))
            begin, before = time.monotonic(), cputime.used(group)
            if chosen:
                await asyncio.gather(*(server.release() for server in chosen))
            # A flow that is lost goes on when no answer has come; one that has changed hands counts
            # as misrouted up to its end. Then all is quiet for the next.
            suffering = max(patient(_TIMEOUT) if chosen else 0.0, plan.flow_seconds)
            await asyncio.sleep(suffering + 3 * BIN_SECONDS)
            after = cputime.used(group)
            used = None if before is None or after is None else after - before
            window = Window(
                share, len(chosen), begin - loads.epoch, time.monotonic() - loads.epoch, used
            )
            course.windows.append(window)
            tell(len(course.windows), loads.failed)
    course.tallies = await loads.stop()


async def _calm(group: Path | None, loads: _Loads, seconds: float) -> Window:
    """Datagrams alone for a while, between the edges of bins: so their number is exact."""
    first = math.ceil((time.monotonic() - loads.epoch) / BIN_SECONDS) + 1
    begin, end = first * BIN_SECONDS, first * BIN_SECONDS + seconds
    await asyncio.sleep(loads.epoch + begin - time.monotonic())
    before = cputime.used(group)
    await asyncio.sleep(loads.epoch + end - time.monotonic())
    after = cputime.used(group)
    used = None if before is None or after is None else after - before
    # Half a bin, for edges are no exact numbers.
    half = BIN_SECONDS / 2
    return Window(0.0, 0, begin + half, end + half, used)


def quick(plan: SetPlan) -> SetPlan:
    """The same in some ten seconds for each system."""
    return replace(
        plan, servers=4, shares=(0.0, 0.5, 1.0), rounds=1, flows=400, datagrams=1600.0, life=3,
        requests=200.0, linger=1.0, calm=0.7,
    )  # fmt: skip


__all__ = [
    "ACCEPTOR",
    "ACCEPTOR_WORKERS",
    "Protocol",
    "Seen",
    "SetCourse",
    "SetPlan",
    "Window",
    "quick",
    "run",
]
