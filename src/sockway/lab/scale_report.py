"""The experiment `scale` for the report: figures, plots, and what they show in words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, get_args

from sockway.lab.drawing import curve, panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.scale_clients import SIZE
from sockway.lab.scale_points import FULL_AT, LOSS, Point
from sockway.lab.scale_systems import Name

NAMES: Final[Mapping[Name, str]] = {
    "single-acceptor": "one accepting thread",
    "reuseport": "SO_REUSEPORT",
    "sockway": "Sockway",
}
WORKERS: Final = 32
SHARE: Final = 0.01
"""Of one CPU, for each worker and the accepting process."""
_MILLION: Final = 1e6

Rounds = list[list[Point]]
"""Of one system: the points of each round, at the same loads."""
Points = Mapping[Name, Rounds]


@dataclass(frozen=True)
class Circumstances:
    """What the loads are measured by."""

    full: float
    """Datagrams a second that one accepting thread answered at most."""
    was_full: bool
    """Whether more was sent to it."""
    by_kernel: bool
    """Whether the kernel holds processes to their budgets, and not they themselves."""


def found(points: Points, circumstances: Circumstances, setting: Setting) -> Findings:
    """The points as findings; their plots are drawn."""
    return Findings(
        systems={str(name): _metrics(rounds) for name, rounds in points.items()},
        plots=[
            _plot(points, setting, Plot(
                name="scale-answered", title="Datagrams answered as load grows",
                sentence=answered_sentence(points),
            ), "datagrams answered a second", lambda point: point.rate),
            _plot(points, setting, Plot(
                name="scale-lost", title="Share of datagrams lost as load grows",
                sentence=lost_sentence(points),
            ), "lost, %", lambda point: 100 * point.lost),
            _plot(points, setting, Plot(
                name="scale-cpu", title="CPU time of a million datagrams",
                sentence=cpu_sentence(points),
            ), "CPU seconds a million answers", _cpu_of_a_million),
        ],
        tables=[_table(points)],
        notes=[note(points, circumstances)],
    )  # fmt: skip


def _cpu_of_a_million(point: Point) -> float | None:
    each = point.cpu_per_packet
    return None if each is None else each * _MILLION


def _by_load(
    rounds: Rounds, value: Callable[[Point], float | None], unit: str = ""
) -> dict[float, Metric]:
    """The median of all rounds, by load; loads of which there is nothing are left out."""
    metrics = {}
    for same in zip(*rounds, strict=True):
        samples = [sample for point in same if (sample := value(point)) is not None]
        if samples:
            metrics[same[0].factor] = Metric.of(samples, unit)
    return metrics


def _metrics(rounds: Rounds) -> dict[str, Metric]:
    every = [point for points in rounds for point in points]
    sent, answered = sum(p.sent for p in every), sum(p.answered for p in every)
    metrics = {
        "capacity": Metric.of([max(p.rate for p in points) for points in rounds], "datagrams/s"),
        "taken": Metric.of(
            [max((p.rate for p in points if p.taken), default=0.0) for points in rounds],
            "datagrams/s",
        ),
        "taken_factor": Metric.of([_taken_factor(points) for points in rounds], "x"),
        "limit_reached": Metric.count(
            sum(not points[-1].taken for points in rounds), "rounds", len(rounds)
        ),
        "sent": Metric.count(sent, "datagrams"),
        "answered": Metric.count(answered, "datagrams", sent),
        "lost": Metric.count(sent - answered, "datagrams", sent),
        "dropped_by_clients": Metric.count(sum(p.dropped for p in every), "datagrams", sent),
    }
    for factor, metric in _by_load(rounds, lambda p: p.rate, "datagrams/s").items():
        metrics[f"answered_{factor:g}x"] = metric
    for factor, metric in _by_load(rounds, lambda p: p.lost, "share").items():
        metrics[f"lost_share_{factor:g}x"] = metric
    for factor, metric in _by_load(rounds, lambda p: p.cpu_per_packet, "s").items():
        metrics[f"cpu_per_packet_{factor:g}x"] = metric
    if within := sum(p.within for p in every):
        metrics["cpu_per_packet"] = Metric.count(sum(p.cpu for p in every) / within, "s", within)
    return metrics


def _taken_factor(points: list[Point]) -> float:
    """The largest load before the first that was not taken."""
    taken = 0.0
    for point in points:
        if not point.taken:
            break
        taken = point.factor
    return taken


def _limited(rounds: Rounds) -> bool:
    """Whether the highest load was more than the system takes."""
    return all(not points[-1].taken for points in rounds)


def _top(points: Points) -> float:
    return max(point.factor for rounds in points.values() for point in rounds[0])


def answered_sentence(points: Points) -> str:
    """What was answered at most; where the load ends before the system does, that is told."""
    most = {name: _metrics(rounds)["capacity"].value for name, rounds in points.items()}
    limited = {name: _limited(rounds) for name, rounds in points.items()}
    told = {name: f"{'' if limited[name] else 'at least '}{most[name]:,.0f}" for name in points}
    words = (
        f"One accepting thread answered {told['single-acceptor']} datagrams a second"
        f"{' at most' if limited['single-acceptor'] else ''}, a socket for each of {WORKERS} "
        f"workers {told['reuseport']} by the kernel's hash and {told['sockway']} by Sockway's "
        "router"
    )
    # Without the one thread's limit there is nothing to be a multiple of.
    if limited["single-acceptor"] and most["single-acceptor"]:
        times = most["sockway"] / most["single-acceptor"]
        least = "" if limited["sockway"] else "at least "
        words += f": {least}{times:.1f} times as many as the one thread"
    factors = [f"{_metrics(points[name])['taken_factor'].value:g}x" for name in get_args(Name)]
    words += (
        f". With {LOSS:.0%} or less lost or left for later, they took {factors[0]}, {factors[1]} "
        f"and {factors[2]} the base load."
    )
    if beyond := [NAMES[name] for name in points if not limited[name]]:
        words += (
            f" {_top(points):g}x is the highest load that there was: the limit of "
            f"{_listed(beyond)} was not reached."
        )
    return words


def lost_sentence(points: Points) -> str:
    """What was lost at the highest load."""
    last = _top(points)
    told = [
        f"{_by_load(rounds, lambda point: point.lost)[last].value:.0%} with {NAMES[name]}"
        for name, rounds in points.items()
    ]
    return f"At {last:g} times the base load {', '.join(told)} were lost."


def cpu_sentence(points: Points) -> str:
    """What a million datagrams cost at the highest load that all take, and at the highest."""
    factors = [point.factor for point in points["sockway"][0]]
    shared = min(_metrics(rounds)["taken_factor"].value for rounds in points.values())
    told = []
    if shared in factors:
        told.append(f"At {shared:g}x the base load, the highest that all took, {{}}")
    else:
        shared = factors[0]
        told.append(f"At {shared:g}x the base load, which not all took, {{}}")
    words = [told[0].format(_costs(points, shared, first=True))]
    if factors[-1] != shared:
        words.append(f"At {factors[-1]:g}x {_costs(points, factors[-1])}")
    return " ".join(words)


def _costs(points: Points, factor: float, *, first: bool = False) -> str:
    costs = {
        name: metric.value
        for name, rounds in points.items()
        if (metric := _by_load(rounds, _cpu_of_a_million).get(factor))
    }
    if not costs:
        return "nothing was answered."
    told = [f"{cost:.2f} with {NAMES[name]}" for name, cost in costs.items()]
    what = "a million datagrams took so many CPU seconds" if first else "it is"
    words = f"{what}: {_listed(told)}"
    one, own = costs.get("single-acceptor"), costs.get("sockway")
    if one and own:
        words += f"; one accepting thread takes {one / own:.1f} times as much as Sockway"
    return f"{words}."


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _plot(
    points: Points, setting: Setting, plot: Plot, label: str,
    value: Callable[[Point], float | None],
) -> Plot:  # fmt: skip
    with panel(setting.output, plot) as axes:
        for name, rounds in points.items():
            metrics = _by_load(rounds, value)
            curve(axes, list(metrics), list(metrics.values()), name, NAMES[name])
        axes.set_xlabel("load, multiples of the base")
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
        axes.margins(y=0.3)
        axes.set_ylim(bottom=0)
        if plot.name == "scale-answered":
            offered = _by_load(points["sockway"], lambda point: point.offered)
            axes.plot(
                list(offered), [each.value for each in offered.values()],
                color="#8a8f94", linewidth=1, linestyle=":", label="offered",
            )  # fmt: skip
        if plot.name == "scale-lost":
            axes.set_ylim(-2, 102)
        # CPU time a datagram falls with the load; the others rise.
        axes.legend(loc="upper right" if plot.name == "scale-cpu" else "upper left")
    return plot


def _table(points: Points) -> Table:
    rows = []
    for name, rounds in points.items():
        metrics = _metrics(rounds)
        cpu = metrics.get("cpu_per_packet")
        rows.append(
            [
                NAMES[name],
                *(f"{each.value:.1%}" for each in _by_load(rounds, lambda p: p.lost).values()),
                f"{'' if _limited(rounds) else '≥ '}{metrics['capacity'].value:,.0f}",
                f"{cpu.value * _MILLION:.1f}" if cpu else "",
            ]
        )
    factors = [f"{point.factor:g}x" for point in points["sockway"][0]]
    return Table(
        title="Share of datagrams lost, by load",
        columns=["accepted by", *factors, "most answered, /s", "CPU, s a million"],
        rows=rows,
    )


def note(points: Points, circumstances: Circumstances) -> str:
    """What one has to know to judge the figures."""
    of = circumstances
    cores = len(os.sched_getaffinity(0))
    how = "the kernel (a control group each)" if of.by_kernel else "themselves (they sleep)"
    base = (
        f"The base load is a third of the {of.full:,.0f} datagrams a second that one accepting "
        f"thread took at most here, so it is full at {FULL_AT}x by definition; what is measured is "
        "how far the others go."
        if of.was_full
        else "The accepting thread never had more than it takes: the base load is a third of the "
        f"{of.full:,.0f} datagrams a second that it answered, and its limit is not known."
    )
    rounds = len(points["sockway"])
    spread = (
        f"Points are medians of {rounds} rounds, with their quartiles."
        if rounds > 1
        else "Each load was there once, so nothing is known of the spread."
    )
    return (
        f"Budgets stand for cores: each of {WORKERS} workers, and the accepting thread, has "
        f"{SHARE:.0%} of one core, held by {how}. That makes {WORKERS + 1} slow cores, as it were, "
        f"whatever the machine has (here {cores}). With fewer workers, others reach less far. "
        f"{base} All are the same Python program, and answer a datagram of {SIZE} octets with "
        "itself; the accepting thread deals flows evenly, and hands over what it read in batches. "
        "An answer counts for the load that its datagram was sent in, also if it comes late; "
        "what a buffer holds when the time is over is no part of a rate. CPU seconds are those of "
        "the system's processes: the router's time is the clients', as is all that happens to a "
        f"packet before it is in its socket. {spread} {_limits(points)}"
    )


def _limits(points: Points) -> str:
    """Whether generator or systems were the limit."""
    every = [point for rounds in points.values() for each in rounds for point in each]
    held = sorted({point.factor for point in every if point.held_back})
    dropped = sum(point.dropped for point in every)
    words = (
        "The generator did not keep up at "
        f"{', '.join(f'{factor:g}x' for factor in held)}: there it was the limit."
        if held
        else "The generator sent what it should at each load"
        + (
            ", and dropped no answer."
            if not dropped
            else f", but its own buffers dropped {dropped:,} answers, which count as lost."
        )
    )
    if held and dropped:
        words += f" Its own buffers dropped {dropped:,} answers, which count as lost."
    limited = [NAMES[name] for name, rounds in points.items() if _limited(rounds)]
    beyond = [NAMES[name] for name, rounds in points.items() if not _limited(rounds)]
    if limited:
        words += f" The highest load was too much for {_listed(limited)}."
    if beyond:
        words += f" It was not for {_listed(beyond)}: there the load ends, not the system."
    return words


__all__ = [
    "NAMES", "SHARE", "WORKERS", "Circumstances", "answered_sentence", "cpu_sentence", "found",
    "lost_sentence", "note",
]  # fmt: skip
