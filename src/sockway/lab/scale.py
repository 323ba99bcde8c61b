"""The experiment `scale`: how much UDP a VIP takes as load grows, until over twenty times as much.

What one thread can accept is the limit where one thread accepts, however many workers there are.
Load is given in multiples of a third of that, so that the accepting thread is full at 3x.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Final, get_args

from sockway.lab.drawing import colour, panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.sandbox import sandbox
from sockway.lab.scale_systems import PORT, Name, System, cpu_seconds, running

NAMES: Final[Mapping[Name, str]] = {
    "single-acceptor": "one accepting thread",
    "reuseport": "SO_REUSEPORT",
    "sockway": "Sockway",
}
WORKERS: Final = 32
SHARE: Final = 0.01
"""Of one CPU, for each worker and the accepting process."""
FACTORS: Final = (1, 2, 3, 4, 6, 9, 12, 16, 20, 24, 30)
QUICK: Final = (1, 3, 21)
FULL_AT: Final = 3
"""The multiple of the base load that fills the accepting thread."""
_WARM: Final = 0.5
_SOCKETS: Final = 64
_ADDRESSES: Final = 32
"""Of the VIP's port that each client socket sends to: so many flows."""
_PAYLOAD: Final = bytes(64)
_BURST: Final = 256
_LEAST: Final = 0.95
"""Of what was to be sent; less, and the generator is the limit."""
_LOSS: Final = 0.05
"""Share of lost datagrams up to which a load counts as taken."""


@dataclass(frozen=True)
class Point:
    """What became of one load."""

    factor: float
    offered: float
    """Datagrams a second that were to be sent."""
    sent: int
    answered: int
    seconds: float
    cpu: float
    """Seconds of CPU time of all processes of the system."""

    @property
    def lost(self) -> float:
        """Share of the datagrams sent that was not answered."""
        return max(0.0, 1 - self.answered / max(self.sent, 1))

    @property
    def rate(self) -> float:
        """Datagrams answered a second."""
        return self.answered / self.seconds

    @property
    def held_back(self) -> bool:
        """Whether the generator did not send what it should."""
        return self.sent < _LEAST * self.offered * self.seconds


class Clients:
    """Sends at a rate, and counts answers."""

    def __init__(self) -> None:
        """Open the sockets."""
        self._poll = select.poll()
        self._socks: dict[int, socket.socket] = {}
        for _ in range(_SOCKETS):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            self._socks[sock.fileno()] = sock
            self._poll.register(sock, select.POLLIN)
        places = [(f"127.0.0.{number}", PORT) for number in range(1, _ADDRESSES + 1)]
        self._flows = [(sock, place) for place in places for sock in self._socks.values()]
        self._next = 0

    def offer(self, rate: float, seconds: float) -> tuple[int, int]:
        """Send so many datagrams a second for so long; how many were sent, and answered."""
        start = time.monotonic()
        sent = answered = 0
        while (passed := time.monotonic() - start) < seconds:
            due = int(passed * rate) - sent
            for _ in range(min(due, _BURST)):
                self._send()
            sent += max(0, min(due, _BURST))
            answered += self._receive(0 if due > 0 else 1)
        return sent, answered

    def settle(self, most: float) -> None:
        """Wait until no answers come any more, for so many seconds at most."""
        end = time.monotonic() + most
        quiet = time.monotonic() + 0.3
        while time.monotonic() < min(end, quiet):
            if self._receive(20):
                quiet = time.monotonic() + 0.3

    def _send(self) -> None:
        sock, place = self._flows[self._next]
        self._next = (self._next + 1) % len(self._flows)
        with contextlib.suppress(BlockingIOError):
            sock.sendto(_PAYLOAD, place)

    def _receive(self, milliseconds: int) -> int:
        count = 0
        for descriptor, _ in self._poll.poll(milliseconds):
            recv = self._socks[descriptor].recv
            with contextlib.suppress(BlockingIOError):
                for _ in range(_BURST):
                    recv(128)
                    count += 1
        return count

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._socks.values():
            sock.close()


def experiment(setting: Setting) -> Findings:
    """Find out what one thread takes; then all systems at all loads.

    Raises:
        SockwayError: a system can't be had here.

    """
    factors = QUICK if setting.quick else FACTORS
    seconds, rounds = (1.5, 1) if setting.quick else (3.0, 3)
    points: dict[Name, list[list[Point]]] = {}
    with sandbox() as box:
        os.environ.update(box.environment)
        with setting.step("what one accepting thread takes", rounds, "rounds") as step:
            full, by_kernel = _capacity(3, seconds)
            step.at(rounds, f"{full:,.0f} datagrams/s")
        for name in get_args(Name):
            with setting.step(NAMES[name], rounds * len(factors), "loads") as step:
                points[name] = []
                for number in range(rounds):
                    points[name].append([])
                    with _loaded(name) as (system, clients):
                        for factor in factors:
                            point = _point(system, clients, factor, full / FULL_AT, seconds)
                            points[name][-1].append(point)
                            done = number * len(factors) + len(points[name][-1])
                            step.at(done, f"{factor}x: {point.rate:,.0f}/s, {point.lost:.0%} lost")
    return found(points, full, setting, by_kernel=by_kernel)


@contextlib.contextmanager
def _loaded(name: Name) -> Iterator[tuple[System, Clients]]:
    with running(name, WORKERS, SHARE) as (system, _), contextlib.closing(Clients()) as clients:
        yield system, clients


def _capacity(rounds: int, seconds: float) -> tuple[float, bool]:
    """Datagrams a second that are answered with one accepting thread that has too many."""
    rates: list[float] = []
    with (
        running("single-acceptor", WORKERS, SHARE) as (system, by_kernel),
        contextlib.closing(Clients()) as clients,
    ):
        clients.offer(1000, _WARM)
        rate = 2000.0
        for _ in range(rounds + 8):
            point = _point(system, clients, 0, rate, seconds)
            if point.lost < 0.2 and not rates:  # noqa: PLR2004 - not full yet
                rate *= 2
                continue
            rates.append(point.rate)
            if len(rates) == rounds:
                break
    return median(rates or [rate]), by_kernel


def _point(system: System, clients: Clients, factor: float, base: float, seconds: float) -> Point:
    rate = base * (factor or 1)
    clients.offer(rate, _WARM)
    before = cpu_seconds(system)
    sent, answered = clients.offer(rate, seconds)
    used = cpu_seconds(system) - before
    clients.settle(3.0)
    return Point(factor, rate, sent, answered, seconds, used)


def found(
    points: Mapping[Name, list[list[Point]]], full: float, setting: Setting, *, by_kernel: bool
) -> Findings:
    """The points as findings; their plots are drawn."""
    systems: dict[Name, dict[str, Metric]] = {}
    for name, rounds in points.items():
        systems[name] = _metrics(rounds)
    curves = {
        name: [_middle(same) for same in zip(*rounds, strict=True)]
        for name, rounds in points.items()
    }
    plots = [_answered(curves, systems, setting), _lost(curves, setting)]
    return Findings(
        systems={str(name): metrics for name, metrics in systems.items()},
        plots=plots,
        tables=[_table(curves, systems)],
        notes=[_note(points, full, by_kernel=by_kernel)],
    )


def _metrics(rounds: list[list[Point]]) -> dict[str, Metric]:
    every = [point for points in rounds for point in points]
    taken = [max((p.rate for p in points if p.lost <= _LOSS), default=0.0) for points in rounds]
    metrics = {
        "capacity": Metric.of([max(p.rate for p in points) for points in rounds], "datagrams/s"),
        "taken": Metric.of(taken, "datagrams/s"),
        "taken_factor": Metric.of([_taken_factor(points) for points in rounds], "x"),
        "sent": Metric.count(sum(p.sent for p in every), "datagrams"),
        "lost": Metric.count(
            sum(max(0, p.sent - p.answered) for p in every),
            "datagrams",
            sum(p.sent for p in every),
        ),
    }
    for same in zip(*rounds, strict=True):
        key = f"{same[0].factor:g}x"
        metrics[f"answered_{key}"] = Metric.of([p.rate for p in same], "datagrams/s")
        metrics[f"lost_share_{key}"] = Metric.of([p.lost for p in same], "share")
    answered = sum(p.answered for p in every)
    if answered:
        cpu = sum(p.cpu for p in every)
        metrics["cpu_per_packet"] = Metric.count(cpu / answered, "s", answered)
    return metrics


def _taken_factor(points: list[Point]) -> float:
    """The largest load before the first that lost more than is allowed."""
    taken = 0.0
    for point in points:
        if point.lost > _LOSS:
            break
        taken = point.factor
    return taken


def _middle(same: tuple[Point, ...]) -> Point:
    """The round with the median rate."""
    return sorted(same, key=lambda point: point.rate)[len(same) // 2]


def _answered(
    curves: Mapping[Name, list[Point]], systems: Mapping[Name, dict[str, Metric]], setting: Setting
) -> Plot:
    first, kernel, own = (systems[name]["capacity"].value for name in get_args(Name))
    plot = Plot(
        name="scale-answered",
        title="Datagrams answered as load grows",
        sentence=(
            f"One accepting thread answered {first:,.0f} datagrams a second at most, a socket for "
            f"each of {WORKERS} workers {kernel:,.0f} by the kernel's hash and {own:,.0f} by "
            f"Sockway's router: {own / first:.1f} times as many as the one thread. Losing "
            f"{_LOSS:.0%} or less, they took {_factors(systems)}."
        ),
    )
    with panel(setting.output, plot) as axes:
        for name, points in curves.items():
            axes.plot(
                [point.factor for point in points],
                [point.rate for point in points],
                marker="o", markersize=4, linewidth=2, color=colour(name), label=NAMES[name],
            )  # fmt: skip
        factors = [point.factor for point in curves["sockway"]]
        offered = [point.offered for point in curves["sockway"]]
        axes.plot(factors, offered, color="#8a8f94", linewidth=1, linestyle=":", label="offered")
        axes.set_xlabel("load, multiples of the base")
        axes.set_ylabel("datagrams answered a second")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")
    return plot


def _lost(curves: Mapping[Name, list[Point]], setting: Setting) -> Plot:
    last = max(point.factor for point in curves["sockway"])
    told = [f"{points[-1].lost:.0%} with {NAMES[name]}" for name, points in curves.items()]
    plot = Plot(
        name="scale-lost",
        title="Share of datagrams lost as load grows",
        sentence=f"At {last:g} times the base load {', '.join(told)} were lost.",
    )
    with panel(setting.output, plot) as axes:
        for name, points in curves.items():
            axes.plot(
                [point.factor for point in points],
                [100 * point.lost for point in points],
                marker="o", markersize=4, linewidth=2, color=colour(name), label=NAMES[name],
            )  # fmt: skip
        axes.set_xlabel("load, multiples of the base")
        axes.set_ylabel("lost, %")
        axes.set_xlim(left=0)
        axes.set_ylim(-2, 102)
        axes.legend(loc="upper left")
    return plot


def _factors(systems: Mapping[Name, dict[str, Metric]]) -> str:
    told = [f"{systems[name]['taken_factor'].value:g}x" for name in get_args(Name)]
    return f"{told[0]}, {told[1]} and {told[2]} the base load"


def _table(curves: Mapping[Name, list[Point]], systems: Mapping[Name, dict[str, Metric]]) -> Table:
    factors = [f"{point.factor:g}x" for point in curves["sockway"]]
    return Table(
        title="Share of datagrams lost, by load",
        columns=["accepted by", *factors, "most answered, /s", "CPU, µs a datagram"],
        rows=[
            [
                NAMES[name],
                *(f"{point.lost:.1%}" for point in points),
                f"{systems[name]['capacity'].value:,.0f}",
                f"{systems[name]['cpu_per_packet'].value * 1e6:.1f}",
            ]
            for name, points in curves.items()
        ],
    )


def _note(points: Mapping[Name, list[list[Point]]], full: float, *, by_kernel: bool) -> str:
    cores = len(os.sched_getaffinity(0))
    how = "the kernel (a control group each)" if by_kernel else "themselves (they sleep)"
    every = [point for rounds in points.values() for each in rounds for point in each]
    held = sorted({point.factor for point in every if point.held_back})
    generator = (
        "The generator sent what it should at each load, so the systems were the limit."
        if not held
        else "The generator did not keep up at "
        f"{', '.join(f'{factor:g}x' for factor in held)}: there it was the limit."
    )
    return (
        f"This machine has {cores} cores, too few to see {WORKERS} workers scale. So each worker, "
        f"and the accepting thread, has a budget of {SHARE:.0%} of one core, held by {how}: "
        f"{WORKERS + 1} slow cores, as it were. With fewer workers, others reach less far. "
        f"The base load is a third of the {full:,.0f} datagrams a second that one accepting thread "
        f"took at most here, so it is full at {FULL_AT}x by definition; what is measured is how "
        "far the others go. All are the same Python program, and answer a datagram of "
        f"{len(_PAYLOAD)} octets with itself; the accepting thread deals flows evenly, and hands "
        "over what it read in batches. Budgets come ten times a second, so rates of single "
        "points waver. The router's time is the clients', as is all that happens to a packet "
        f"before it is in its socket. {generator}"
    )


__all__ = ["experiment", "found"]
