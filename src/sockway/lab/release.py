"""The experiment `release` of the report: a set of servers, and the demo's scenarios; all systems.

What fails, when; and what a release costs. Socket takeover is good enough to lose nothing, so the
price is what is left to tell it from Sockway: packets that are forwarded in user space.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from sockway.errors import SockwayError
from sockway.lab import offered, server_set, server_set_report
from sockway.lab.drawing import bars, colour, panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.offered import Offer
from sockway.lab.report import NAMES, QUANTILES, metrics
from sockway.lab.sandbox import Sandbox, sandbox
from sockway.lab.scenario import Progress, Result, Scenario, run
from sockway.lab.server_set import ACCEPTOR, SetCourse, SetPlan
from sockway.lab.suite import (
    ALL_SYSTEMS,
    KINDS,
    ORDER,
    UDP_TARGETS,
    Kind,
    Outcome,
    offered_rate,
)  # fmt: skip

_AGED: Final = Kind(
    key="aged",
    title="UDP flows that began before the release, and no others",
    labels={"udp": "old UDP flows"},
    program="echo",
    load={"udp": {"targets": UDP_TARGETS, "flows": 1000, "rate": 4000}},
    every=6.0,
    linger=30.0,
)
_UNITS: Final = {"http1": "requests", "http3": "requests", "udp": "datagrams"}
_QUICK_KINDS: Final = tuple(kind for kind in KINDS if kind.key == "http3")
"""What the set of servers doesn't have."""
_RELEASES: Final = 10
_STEP: Final = 0.5
"""Seconds that a point of a plot stands for."""


def experiment(setting: Setting) -> Findings:
    """A set of servers, then all kinds of load (of which quick runs have one), by all systems.

    Raises:
        SockwayError: a server did not start, or a release failed.

    """
    began = time.monotonic()
    with sandbox() as box:
        courses = {system: _set(system, box, setting) for system in (ACCEPTOR, *ORDER)}
        results = {
            (kind.key, system): _one(kind, _paced(kind.scenario(system, 1), setting), box, setting)
            for kind in (_QUICK_KINDS if setting.quick else KINDS)
            for system in ORDER
        }
        # Flows that don't end: the old servers stay until all is over.
        aged = {
            system: _one(_AGED, replace(_AGED.scenario(system, 1), wait=False), box, setting)
            for system in (() if setting.quick else ("takeover", "sockway"))
        }
    outcome = Outcome(results, time.monotonic() - began)
    aged_errors = [f"{_AGED.title}: {part.error}" for part in aged.values() if part.error]
    if errors := [*outcome.errors, *aged_errors]:
        raise SockwayError("; ".join(errors))
    return together(server_set_report.found(courses, setting), found(outcome, aged, setting))


def _paced(scenario: Scenario, setting: Setting) -> Scenario:
    if not setting.quick:
        return replace(scenario, releases=_RELEASES, lead=2.0)
    # The least time in which old connections are there and are gone again.
    load = {key: task | {"life": 1, "timeout": 2} for key, task in scenario.load.items()}
    return replace(scenario, lead=0.4, every=0.0, linger=1.25, load=load)


def _set(system: str, box: Sandbox, setting: Setting) -> SetCourse:
    plan = SetPlan(seed=setting.seed)
    if setting.quick:
        plan = server_set.quick(plan)
    total = len(plan.shares) * plan.rounds
    with setting.step(f"a set of servers, {NAMES[system]}", total, "releases") as step:
        return asyncio.run(
            server_set.run(
                system, plan, box, lambda done, failed: step.at(done, f"{failed:,} failed")
            )
        )


_EVERYWHERE: Final[Mapping[str, tuple[str, Sequence[str]]]] = {
    # From the set of servers, and from what `found` has.
    "sent": ("requests and datagrams", ("set_udp_sent", "set_tcp_sent", "sent")),
    "failed": ("requests and datagrams", ("set_udp_failed", "set_tcp_failed", "failed")),
    "lost": ("datagrams", ("set_udp_lost", "lost")),
    "misrouted": ("datagrams", ("set_udp_misrouted", "misrouted")),
    "resets": ("requests", ("set_tcp_resets", "resets")),
    "forwarded": ("packets", ("set_forwarded", "forwarded")),
}
"""Figures with names that all experiments have: of what each is the sum."""


def together(one: Findings, other: Findings) -> Findings:
    """Both, with figures that both have in one."""
    systems = {}
    for system in dict.fromkeys([*one.systems, *other.systems]):
        metrics = one.systems.get(system, {}) | other.systems.get(system, {})
        for name, (unit, of) in _EVERYWHERE.items():
            parts = [metrics[part] for part in of if part in metrics]
            if parts:
                among = 1 if name == "sent" else sum(part.n for part in parts)
                metrics[name] = Metric.count(sum(part.value for part in parts), unit, among)
        systems[system] = metrics
    return Findings(
        systems=systems,
        plots=[*one.plots, *other.plots],
        tables=[*one.tables, *other.tables],
        notes=[*one.notes, *other.notes],
    )


def _one(kind: Kind, scenario: Scenario, box: Sandbox, setting: Setting) -> Result:
    words = f"{kind.labels[next(iter(kind.labels))]}, {NAMES[scenario.system]}"
    with setting.step(words, scenario.releases, "releases") as step:

        def show(state: Progress) -> None:
            step.at(state.releases, f"{state.failed:,} of {state.requests:,} failed")

        return asyncio.run(run(scenario, box, show))


def found(outcome: Outcome, aged: dict[str, Result], setting: Setting) -> Findings:
    """The outcome as findings; its plots are drawn."""
    plots = [_failures(outcome, kind, setting) for kind in _kinds(outcome)]
    systems = {
        system: {
            name: Metric.count(figure["value"], figure["unit"], figure["n"])
            for name, figure in metrics(outcome, system).items()
        }
        for system in outcome.systems
    }
    for system, part in aged.items():
        systems[system].update(_aged_metrics(part))
    if aged and all("aged_cpu_per_datagram" in systems[system] for system in aged):
        plots.append(_costs(aged, systems, setting))
    return Findings(
        systems=systems,
        plots=plots,
        tables=[_table(outcome), offered.table("Load of the releases", _offers(outcome, aged))],
        notes=[note(outcome, aged)],
    )


def _offers(outcome: Outcome, aged: dict[str, Result]) -> list[Offer]:
    """Each load of each system."""
    parts = [
        (kind, system, outcome.results[kind.key, system])
        for kind in _kinds(outcome)
        for system in ORDER
    ]
    parts += [(_AGED, system, part) for system, part in aged.items()]
    return [
        Offer(kind.labels.get(load, load), NAMES[system], offered_rate(load, task), tally)
        for kind, system, part in parts
        for load, task in part.scenario.load.items()
        if (tally := part.tallies.get(load))
    ]


def note(outcome: Outcome, aged: dict[str, Result]) -> str:
    """What was done, by the scenarios that were run, and what the figures rest on."""
    told = []
    for kind in _kinds(outcome):
        scenario = outcome.results[kind.key, ORDER[-1]].scenario
        linger = (
            f"old ones stay for {scenario.linger:g} s"
            if scenario.linger
            else "old ones end when they have answered"
        )
        told.append(
            f"{kind.labels[next(iter(kind.labels))]}: {scenario.workers} workers, "
            f"{_times(scenario.releases)}, {linger}"
        )
    words = (
        "Servers and clients share this machine's cores. All systems have the same programs and "
        f"the same load. {'; '.join(told)}. {offered.words(_offers(outcome, aged))} Times count "
        "from the moment at which a request was due. CPU seconds of a release are those of all "
        "processes of the system, old and new servers, supervisors and commands, from its begin to "
        "the end of the old ones"
    )
    counts = {len(part.cpu_of_releases) for part in outcome.results.values()}
    if counts == {1}:
        words += "; of one release, so nothing is known of their spread."
    else:
        words += "; the median of all releases of a load."
    if aged:
        words += (
            " What a datagram of an old flow costs was measured over "
            f"{_times(min(len(part.releases) for part in aged.values()))} of each system: nothing "
            "is known of its spread."
        )
    return words


def _times(releases: int) -> str:
    return "one release" if releases == 1 else f"{releases} releases"


def _kinds(outcome: Outcome) -> list[Kind]:
    return [kind for kind in KINDS if any(key == kind.key for key, _ in outcome.results)]


def _failures(outcome: Outcome, kind: Kind, setting: Setting) -> Plot:
    """When what failed, in one panel."""
    unit = _UNITS[kind.key]
    told = [
        f"{NAMES[system]} {tally.failed:,} of {tally.requests:,}"
        for system in ALL_SYSTEMS
        for tally in [outcome.tally(system, kind.key)]
    ]
    plot = Plot(
        name=f"release-{kind.key}",
        title=kind.labels[next(iter(kind.labels))],
        sentence=f"{unit.capitalize()} that failed: {', '.join(told)}.",
    )
    with panel(setting.output, plot) as axes:
        for system in ORDER:
            result = outcome.results[kind.key, system]
            if not result.releases:
                continue
            start = result.releases[0][0] - result.scenario.lead
            points: Counter[int] = Counter()
            for when, count in result.total.failures_over_time().items():
                points[max(int((when - start) / _STEP), 0)] += count
            last = int((result.seconds - start) / _STEP) + 1
            axes.step(
                [step * _STEP for step in range(last)],
                [points[step] / _STEP for step in range(last)],
                where="post", color=colour(system), linewidth=2,
                label=f"{NAMES[system]}: {result.total.failed:,}",
            )  # fmt: skip
        axes.set_xlabel("seconds (releases one after another)")
        axes.set_ylabel(f"failed {unit} a second")
        axes.legend(loc="upper left")
        axes.margins(x=0, y=0.4)
        axes.set_ylim(bottom=0)
    return plot


def _aged_metrics(part: Result) -> dict[str, Metric]:
    """What old flows cost, and how long their answers took."""
    total = part.total
    figures = {"aged_failed": Metric.count(total.failed, "datagrams", total.requests)}
    for name, share in QUANTILES.items():
        figures[f"aged_{name}"] = Metric.count(
            total.latency.quantile(share), "s", total.outcomes["ok"]
        )
    if draining := part.cpu_while_draining():
        cpu, datagrams = draining
        figures["aged_cpu_per_datagram"] = Metric.count(cpu / datagrams, "s", datagrams)
    return figures


def _costs(
    aged: dict[str, Result], systems: dict[str, dict[str, Metric]], setting: Setting
) -> Plot:
    """What a datagram of an old flow costs the servers."""
    costs = {}
    for system in aged:
        metric = systems[system]["aged_cpu_per_datagram"]
        costs[system] = Metric.count(metric.value * 1e6, "us", metric.n)
    takeover, own = costs["takeover"].value, costs["sockway"].value
    late = [systems[system]["aged_p99"].value * 1e3 for system in ("takeover", "sockway")]
    forwarded = aged["takeover"].decisions["forwarded"]
    plot = Plot(
        name="release-cost",
        title="CPU a datagram of a flow of the old server",
        sentence=(
            f"A datagram of a flow that is older than the release costs the servers "
            f"{takeover:.0f} µs with socket takeover, which forwarded {forwarded:,}, and "
            f"{own:.0f} µs with Sockway, where none is forwarded: {takeover / own:.1f} times as "
            f"much. Of the answers 99 % came within {late[0]:.1f} and {late[1]:.1f} ms."
        ),
    )
    with panel(setting.output, plot) as axes:
        bars(axes, costs, NAMES, "{:.0f}")
        axes.set_ylabel("µs of the servers' CPU")
    return plot


def _table(outcome: Outcome) -> Table:
    rows = []
    for kind in _kinds(outcome):
        for system in ALL_SYSTEMS:
            part = outcome.results[kind.key, system]
            timed = part.tallies[next(iter(kind.load))]
            total = part.total
            cpu = Metric.of(part.cpu_of_releases, "s").value if part.cpu_of_releases else None
            rows.append(
                [
                    kind.labels[next(iter(kind.labels))],
                    NAMES[system],
                    f"{total.requests:,}",
                    f"{total.failed:,}",
                    f"{total.resets:,}",
                    f"{total.outcomes['lost']:,}",
                    f"{total.outcomes['misrouted']:,}",
                    *(f"{timed.latency.quantile(q) * 1e3:.1f}" for q in (0.5, 0.99, 0.999)),
                    "" if cpu is None else f"{cpu:.2f}",
                ]
            )
    return Table(
        title="Releases under load",
        columns=[
            "load", "released by", "sent", "failed", "reset", "lost", "misrouted",
            "p50, ms", "p99, ms", "p99.9, ms", "CPU of a release, s",
        ],
        rows=rows,
    )  # fmt: skip


__all__ = ["experiment", "found", "note", "together"]
