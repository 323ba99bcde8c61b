"""Of a set of servers, more and more are released at once: what the report says of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sockway.lab import offered
from sockway.lab.drawing import curve, panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.offered import Offer
from sockway.lab.report import NAMES
from sockway.lab.server_set import ACCEPTOR, ACCEPTOR_WORKERS, Protocol, Seen, SetCourse, SetPlan

_TITLES: Final[Mapping[Protocol, str]] = {
    "udp": "UDP, while a share of the servers is released",
    "tcp": "HTTP/1.1, while a share of the servers is released",
}
_UNITS: Final[Mapping[Protocol, str]] = {"udp": "datagrams", "tcp": "requests"}
_LOADS: Final[Mapping[Protocol, str]] = {"udp": "UDP", "tcp": "HTTP/1.1"}
_MARKERS: Final[Mapping[str, str]] = {
    "single-acceptor": "^",
    "reuseport": "o",
    "takeover": "s",
    "sockway": "D",
}

Courses = Mapping[str, SetCourse]
"""By system."""


def found(courses: Courses, setting: Setting) -> Findings:
    """The courses as findings; their plots are drawn."""
    return Findings(
        systems={system: _metrics(course) for system, course in courses.items()},
        plots=[_plot(courses, protocol, setting) for protocol in _UNITS],
        tables=[_table(courses), offered.table("Load of the set of servers", _offers(courses))],
        notes=[note(courses)],
    )


def _of(courses: Courses, protocol: Protocol) -> Courses:
    """Those that have a protocol: one accepting thread has UDP only."""
    return {system: each for system, each in courses.items() if protocol in each.tallies}


def _offers(courses: Courses) -> list[Offer]:
    return [
        Offer(_LOADS[protocol], NAMES[system], course.plan.offered(protocol), tally)
        for protocol in _UNITS
        for system, course in _of(courses, protocol).items()
        for tally in [course.tallies[protocol]]
    ]


def _shares(course: SetCourse) -> list[float]:
    return sorted({window.share for window in course.windows})


def _of_share(course: SetCourse, share: float, protocol: Protocol) -> list[Seen]:
    return [course.seen(w, protocol) for w in course.windows if w.share == share]


def _all(course: SetCourse, protocol: Protocol) -> Seen:
    seen = [course.seen(window, protocol) for window in course.windows]
    return Seen(
        sent=sum(each.sent for each in seen),
        failed=sum(each.failed for each in seen),
        lost=sum(each.lost for each in seen),
        misrouted=sum(each.misrouted for each in seen),
        resets=sum(each.resets for each in seen),
    )


def _metrics(course: SetCourse) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for protocol in course.tallies:
        unit, total = _UNITS[protocol], _all(course, protocol)
        for name in ("failed", "lost", "misrouted", "resets"):
            metrics[f"set_{protocol}_{name}"] = Metric.count(getattr(total, name), unit, total.sent)
        metrics[f"set_{protocol}_sent"] = Metric.count(total.sent, unit)
        tally = course.tallies[protocol]
        offer = Offer("", "", course.plan.offered(protocol), tally)
        metrics[f"set_{protocol}_offered_rate"] = Metric.count(offer.rate, f"{unit}/s")
        metrics[f"set_{protocol}_achieved_rate"] = Metric.count(
            offer.achieved, f"{unit}/s", tally.requests
        )
        for share in _shares(course):
            failed = [seen.failed for seen in _of_share(course, share, protocol)]
            metrics[f"set_{protocol}_failed_{share * 100:.0f}"] = Metric.of(failed, unit)
    if course.forwarded is not None:
        metrics["set_forwarded"] = Metric.count(
            course.forwarded, "packets", _all(course, "udp").sent
        )
    if cpu := course.cpu_of_a_release():
        metrics["set_cpu_of_a_release"] = Metric.of(cpu, "s")
    if calm := course.cpu_of_datagrams():
        used, sent = calm
        metrics["cpu_per_packet"] = Metric.count(used / sent, "s", sent)
    return metrics


def _plot(courses: Courses, protocol: Protocol, setting: Setting) -> Plot:
    plot = Plot(
        name=f"release-set-{protocol}",
        title=_TITLES[protocol],
        sentence=sentence(courses, protocol),
    )
    with panel(setting.output, plot) as axes:
        for system, course in _of(courses, protocol).items():
            shares = _shares(course)
            failed = [
                Metric.of([seen.failed for seen in _of_share(course, share, protocol)], "")
                for share in shares
            ]
            places = [share * 100 for share in shares]
            curve(axes, places, failed, system, NAMES[system], marker=_MARKERS[system])
        axes.set_xlabel("servers released at the same time, %")
        axes.set_ylabel(f"{_UNITS[protocol]} failed a release")
        axes.margins(y=0.35)
        axes.set_ylim(bottom=0)
        if axes.get_ylim()[1] < 1:
            axes.set_ylim(top=1)
        axes.legend(loc="upper left")
    return plot


def sentence(courses: Courses, protocol: Protocol) -> str:
    """What the plot of a protocol shows."""
    plan = next(iter(courses.values())).plan
    last = max(plan.shares)
    told = []
    for system, course in _of(courses, protocol).items():
        seen = _of_share(course, last, protocol)
        failed, sent = sum(each.failed for each in seen), sum(each.sent for each in seen)
        share = f" ({failed / sent:.1%})" if failed else ""
        told.append(f"{NAMES[system]} {failed:,} of {sent:,}{share}")
    return (
        f"With {last:.0%} of {plan.servers} servers released at the same time, "
        f"{_UNITS[protocol]} that failed of those until all old ones were gone: {', '.join(told)}."
    )


def _table(courses: Courses) -> Table:
    shares = _shares(next(iter(courses.values())))
    rows: list[list[str]] = []
    for protocol in _UNITS:
        for system, course in _of(courses, protocol).items():
            total = _all(course, protocol)
            failed = [
                f"{sum(seen.failed for seen in _of_share(course, share, protocol)):,}"
                for share in shares
            ]
            rows.append(
                [
                    _LOADS[protocol], NAMES[system], *failed,
                    f"{total.lost:,}", f"{total.misrouted:,}", f"{total.resets:,}",
                    f"{total.sent:,}",
                ]
            )  # fmt: skip
    return Table(
        title="Failed while a share of the servers was released",
        columns=[
            "load", "released by", *(f"{share:.0%}" for share in shares),
            "lost", "misrouted", "reset", "sent",
        ],
        rows=rows,
    )  # fmt: skip


def note(courses: Courses) -> str:
    """What was done, and what the figures rest on."""
    plan = next(iter(courses.values())).plan
    rounds = (
        f"A point is the median of {plan.rounds} releases of that share, with its quartiles."
        if plan.rounds > 1
        else "Each share was released once, so nothing is known of the spread."
    )
    return (
        f"The set: {plan.servers} servers of one worker, each with a TCP and a UDP VIP of its own; "
        f"{plan.flows:,} UDP flows of {plan.life} datagrams ({plan.datagrams:,.0f} datagrams a "
        f"second in all) and {plan.requests:,.0f} HTTP requests a second, each on a connection of "
        f"its own, to all of them by turns. Old servers stay for up to {plan.linger:g} s beside "
        f"the new ones.{_acceptor_words(courses)} {rounds} What failed belongs to the release "
        f"during which it was due. {offered.words(_offers(courses))}{_cpu_words(courses, plan)}"
    )


def _acceptor_words(courses: Courses) -> str:
    if ACCEPTOR not in courses:
        return ""
    return (
        f" One accepting thread has UDP only, and {ACCEPTOR_WORKERS} workers that answer: its "
        "socket can't be had twice, so a new one is loaded, the old one ends, the new one binds."
    )


def _cpu_words(courses: Courses, plan: SetPlan) -> str:
    releases: Sequence[str] = [
        f"{NAMES[system]} {Metric.of(cpu, 's').value:.2f} s"
        for system, course in courses.items()
        if (cpu := course.cpu_of_a_release())
    ]
    datagrams: Sequence[str] = [
        f"{NAMES[system]} {calm[0] / calm[1] * 1e6:.0f} µs"
        for system, course in courses.items()
        if (calm := course.cpu_of_datagrams())
    ]
    words = ""
    if datagrams:
        words += (
            f" CPU time of a datagram, in {plan.calm:g} s without releases or HTTP: "
            f"{', '.join(datagrams)}."
        )
    if releases:
        words += (
            " CPU time of a server's release, beside what serving takes, with the start of the new "
            f"one and of what starts it: {', '.join(releases)}."
        )
    return words


__all__ = ["Courses", "found", "note", "sentence"]
