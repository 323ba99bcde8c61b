"""The experiment `spread`: how evenly workers are loaded when flows are not alike.

A few UDP flows last and send half of all datagrams; many small ones come and go. A worker is chosen
for a new flow, and the flow stays there. Spread by hash is blind; weights can follow the load that
was counted, so that new flows make way for the large ones; spread by CPU keeps a packet's work on
the CPU that it came in on.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Final, Protocol

from sockway.lab.drawing import bars, panel
from sockway.lab.experiments import Setting, Step
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.sandbox import sandbox
from sockway.sockets.counters import read_worker_by_cpu
from sockway.sockets.generation import Generation
from sockway.sockets.service import Service
from sockway.wire.addresses import Vip

NAMES: Final[Mapping[str, str]] = {
    "reuseport": "SO_REUSEPORT",
    "hash": "hash",
    "weights": "weights",
    "cpu": "CPU",
}
PORT: Final = 7000
HOST: Final = "127.0.0.1"
MOST_WORKERS: Final = 32
LARGE: Final = 6
"""Flows that last."""
LARGE_SIZE: Final = 100
"""Datagrams of each of them in a round: a socket's buffer holds them."""
SMALL: Final = 240
"""Flows that come and go; their sizes are of a Pareto distribution."""
_SHAPE: Final = 1.5
_MOST: Final = 25
_LEAVE: Final = 0.25
"""Of the small flows, in each round; new ones come for them."""
_ROUNDS: Final = 10
"""That are counted, of each set of large flows."""
_STAYS: Final = 0.9
"""About so much of a worker's load is still there in the next round."""
_LEAST: Final = 0.005
"""Weight of a worker that has too much already."""
_SETTLE: Final = 6
"""Rounds before anything is counted."""
WANTED: Final = (4.0, 2.0, 1.0, 1.0)
"""Weights for workers that are not alike."""
_NOTE: Final = (
    f"{{}} workers; {LARGE} large flows that last and {SMALL} small ones, of which a quarter is "
    f"replaced before each round; {{}} sets of large flows, {_ROUNDS} rounds of each; the same "
    "flows by all. Weights are set after each round by what workers got in it. Where packets "
    "came in is read from the router's counters, one for each CPU (SO_REUSEPORT: from the "
    "clients, which are pinned). Packets are counted, not timed: there is no limit to meet."
)


@dataclass
class Flow:
    """A client's socket, and how much it sends."""

    sock: socket.socket
    size: int
    cpu: int


@dataclass
class Course:
    """What workers got by one spread."""

    imbalance: list[float] = field(default_factory=list)
    """In each round: the most loaded worker's packets over the mean."""
    sent: int = 0
    lost: int = 0
    by_cpu: list[list[int]] = field(default_factory=list)
    """Packets by worker and by the CPU that they came in on."""

    def kept(self) -> float:
        """Share of packets whose worker is at home on the CPU that they came in on."""
        workers = len(self.by_cpu)
        cpus = os.cpu_count() or 1
        same = sum(
            count
            for worker, counts in enumerate(self.by_cpu)
            for cpu, count in enumerate(counts)
            if cpu % cpus == home(worker, workers, cpus)
        )
        return same / max(1, sum(map(sum, self.by_cpu)))


def home(worker: int, workers: int, cpus: int) -> int:
    """The CPU that a worker is run on, where CPUs share workers in runs."""
    return worker * cpus // workers


class System(Protocol):
    """Workers' sockets, and what chooses among them."""

    sockets: list[socket.socket]

    def follow(self, loads: Sequence[int]) -> None:
        """Learn what workers got in the last round."""

    def by_cpu(self, counted: list[list[int]]) -> list[list[int]]:
        """Packets by worker and CPU; `counted` is what the clients know of it."""


class Kernel:
    """Plain SO_REUSEPORT."""

    def __init__(self, workers: int) -> None:
        """Bind the workers' sockets."""
        self.sockets = []
        for _ in range(workers):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind((HOST, PORT))
            self.sockets.append(sock)

    def follow(self, loads: Sequence[int]) -> None:
        """It can't."""

    def by_cpu(self, counted: list[list[int]]) -> list[list[int]]:
        """It has no counters."""
        return counted


class Routed:
    """A generation of a service."""

    def __init__(self, service: Service, generation: Generation, *, follows: bool) -> None:
        """Publish it."""
        self._service = service
        self._generation = generation
        self._follows = follows
        self.sockets = [
            next(iter(generation.sockets(worker).values())) for worker in range(generation.workers)
        ]
        generation.publish()

    def follow(self, loads: Sequence[int]) -> None:
        """Have new flows fill up those who lack most to the mean."""
        mean = fmean(loads)
        if self._follows and mean:
            stays = [_STAYS * load / mean for load in loads]
            self._generation.set_weights([max(_LEAST, 1 - load) for load in stays])

    def by_cpu(self, counted: list[list[int]]) -> list[list[int]]:
        """What the router's own counters say."""
        del counted
        number = self._generation.number
        workers = range(self._generation.workers)
        return [read_worker_by_cpu(self._service.state, number, worker) for worker in workers]


@contextlib.contextmanager
def system(name: str, workers: int, root: str) -> Iterator[System]:
    """A system by its name, gone when the block ends."""
    if name == "reuseport":
        kernel = Kernel(workers)
        try:
            yield kernel
        finally:
            for sock in kernel.sockets:
                sock.close()
        return
    vip = Vip.parse(f"udp://{HOST}:{PORT}?flow=tuple&spread={name}")
    with Service.open("spread", [vip], root=root) as service:
        try:
            with service.generation(workers=workers) as generation:
                yield Routed(service, generation, follows=name == "weights")
                generation.close(force=True)
        finally:
            service.remove()


def experiment(setting: Setting) -> Findings:
    """The same flows by all systems; then weights for workers that are not alike.

    Raises:
        SockwayError: the router can't be loaded here.

    """
    workers = min(MOST_WORKERS, 2 * (os.cpu_count() or 1))
    sets = 4 if setting.quick else 20
    courses: dict[str, Course] = {}
    with sandbox() as box:
        root = box.environment["SOCKWAY_BPFFS"]
        for name in NAMES:
            words = f"{NAMES[name]}: {workers} workers"
            with setting.step(words, sets, "sets") as step, system(name, workers, root) as made:
                courses[name] = _course(made, sets, random.Random(setting.seed), step)
        with setting.step(f"weights {_colons(WANTED)}", 1) as step:
            shares = _unequal(root, 4000 if setting.quick else 20_000)
            step.at(1)
    return _found(courses, shares, workers, setting)


def _course(made: System, sets: int, chance: random.Random, step: Step) -> Course:
    course = Course()
    affinity = os.sched_getaffinity(0)
    ports = itertools.count(PORT + 1)
    counted = [[0] * (os.cpu_count() or 1) for _ in made.sockets]
    for sock in made.sockets:
        sock.setblocking(False)

    def flow(size: int) -> Flow:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # A port that was another flow's would be remembered as that flow.
        sock.bind((HOST, next(ports)))
        sock.connect((HOST, PORT))
        return Flow(sock, size, chance.choice(sorted(affinity)))

    large: list[Flow] = []
    small: list[Flow] = []
    try:
        for number in range(sets):
            _close(large)
            large += [flow(LARGE_SIZE) for _ in range(LARGE)]
            for turn in range(-_SETTLE, _ROUNDS):
                _close(small, chance.sample(small, int(len(small) * _LEAVE)))
                while len(small) < SMALL:
                    small.append(flow(min(_MOST, int(chance.paretovariate(_SHAPE)))))
                loads = _round([*large, *small], made, counted, course)
                if turn >= 0:
                    course.imbalance.append(max(loads) / fmean(loads))
                made.follow(loads)
            step.at(number + 1, f"{median(course.imbalance):.2f} max/mean")
        course.by_cpu = made.by_cpu(counted)
    finally:
        os.sched_setaffinity(0, affinity)
        _close(large)
        _close(small)
    return course


def _close(flows: list[Flow], ending: Sequence[Flow] | None = None) -> None:
    """End some of the flows, or all."""
    for flow in list(flows) if ending is None else ending:
        flows.remove(flow)
        flow.sock.close()


def _round(flows: list[Flow], made: System, counted: list[list[int]], course: Course) -> list[int]:
    """All flows send, each from its CPU; what each worker got."""
    loads = [0] * len(made.sockets)
    for cpu in sorted({flow.cpu for flow in flows}):
        os.sched_setaffinity(0, {cpu})
        for flow in flows:
            if flow.cpu != cpu:
                continue
            for _ in range(flow.size):
                flow.sock.send(b"?")
            course.sent += flow.size
            arrived = 0
            for worker, sock in enumerate(made.sockets):
                got = _empty(sock)
                loads[worker] += got
                counted[worker][cpu] += got
                arrived += got
            course.lost += flow.size - arrived
    return loads


def _empty(sock: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(16)
            count += 1
    return count


def _unequal(root: str, flows: int) -> list[float]:
    """The shares of new flows that workers with weights `WANTED` get."""
    vip = Vip.parse(f"udp://{HOST}:{PORT}?flow=tuple&spread=weights")
    with (
        Service.open("unequal", [vip], root=root) as service,
        service.generation(workers=len(WANTED)) as generation,
    ):
        generation.publish()
        generation.set_weights(WANTED)
        for _ in range(flows):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"?", (HOST, PORT))
        counts = [count.new_flows for count in generation.counts()]
        generation.close(force=True)
        service.remove()
    return [count / sum(counts) for count in counts]


def _found(
    courses: Mapping[str, Course], shares: Sequence[float], workers: int, setting: Setting
) -> Findings:
    balance = {name: Metric.of(course.imbalance, "1") for name, course in courses.items()}
    kept = {
        name: Metric.count(course.kept() * 100, "%", sum(map(sum, course.by_cpu)))
        for name, course in courses.items()
    }
    plots = [
        Plot(
            name="spread-load", title="The most loaded worker, over the mean",
            sentence=balance_sentence(balance, workers),
        ),
        Plot(
            name="spread-cpu", title="Packets whose worker is on the CPU they came in on",
            sentence=kept_sentence(kept),
        ),
    ]  # fmt: skip
    with panel(setting.output, plots[0]) as axes:
        bars(axes, balance, NAMES, "{:.2f}")
        axes.axhline(1, color="#8a8f94", linewidth=1, linestyle=":")
        axes.set_ylabel("packets of the busiest / mean")
    with panel(setting.output, plots[1]) as axes:
        bars(axes, kept, NAMES, "{:.1f} %")
        axes.set_ylabel("% of packets")
    metrics = {
        name: {
            "imbalance": balance[name],
            "kept_on_cpu": kept[name],
            "sent": Metric.count(course.sent, "datagrams"),
            "lost": Metric.count(course.lost, "datagrams", course.sent),
        }
        for name, course in courses.items()
    }
    wanted = [weight / sum(WANTED) for weight in WANTED]
    error = max(abs(had - share) for had, share in zip(shares, wanted, strict=True))
    metrics["weights"]["share_error"] = Metric.count(error * 100, "% of flows", len(shares))
    return Findings(
        systems=metrics,
        plots=plots,
        tables=[_table(shares, wanted)],
        notes=[_NOTE.format(workers, len(next(iter(courses.values())).imbalance) // _ROUNDS)],
    )


def balance_sentence(balance: Mapping[str, Metric], workers: int) -> str:
    """What the plot of loads shows."""
    told = ", ".join(f"{metric.value:.2f} by {NAMES[name]}" for name, metric in balance.items())
    gain = balance["hash"].value - balance["weights"].value
    excess = balance["hash"].value - 1
    change = (
        f"weights that follow the load take away {gain / excess:.0%} of what is above even"
        if gain > 0 and excess > 0
        else "weights that follow the load do not even it out here"
    )
    return (
        f"Of {workers} workers under skewed flows, the busiest got this many times the mean "
        f"(median of rounds): {told}; {change}."
    )


def kept_sentence(kept: Mapping[str, Metric]) -> str:
    """What the plot of CPUs shows."""
    others = ", ".join(
        f"{metric.value:.0f} % by {NAMES[name]}" for name, metric in kept.items() if name != "cpu"
    )
    return (
        f"Spread by CPU kept {kept['cpu'].value:.1f} % of {kept['cpu'].n:,} packets on the CPU "
        f"that they came in on; the others leave that to chance: {others}."
    )


def _table(shares: Sequence[float], wanted: Sequence[float]) -> Table:
    rows = [
        [f"worker {worker}", f"{share:.1%}", f"{had:.1%}"]
        for worker, (share, had) in enumerate(zip(wanted, shares, strict=True))
    ]
    return Table(
        title=f"Shares of new flows by weights {_colons(WANTED)}",
        columns=["", "asked for", "had"],
        rows=rows,
    )


def _colons(weights: Sequence[float]) -> str:
    return ":".join(f"{weight:g}" for weight in weights)


__all__ = ["NAMES", "Course", "balance_sentence", "experiment", "home", "kept_sentence"]
