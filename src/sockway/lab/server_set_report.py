"""Of a set of servers, more and more are released at once: what the report says of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sockway.lab.drawing import colour, panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.report import NAMES
from sockway.lab.server_set import Protocol, Seen, SetCourse

_TITLES: Final[Mapping[Protocol, str]] = {
    "udp": "UDP, while a share of the servers is released",
    "tcp": "HTTP/1.1, while a share of the servers is released",
}
_UNITS: Final[Mapping[Protocol, str]] = {"udp": "datagrams", "tcp": "requests"}
_MARKERS: Final[Mapping[str, str]] = {"reuseport": "o", "takeover": "s", "sockway": "D"}

Courses = Mapping[str, SetCourse]
"""By system."""


def found(courses: Courses, setting: Setting) -> Findings:
    """The courses as findings; their plots are drawn."""
    return Findings(
        systems={system: _metrics(course) for system, course in courses.items()},
        plots=[_plot(courses, protocol, setting) for protocol in _UNITS],
        tables=[_table(courses)],
        notes=[_note(courses)],
    )


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
    for protocol, unit in _UNITS.items():
        total = _all(course, protocol)
        for name in ("failed", "lost", "misrouted", "resets"):
            metrics[f"set_{protocol}_{name}"] = Metric.count(getattr(total, name), unit, total.sent)
        metrics[f"set_{protocol}_sent"] = Metric.count(total.sent, unit)
        for share in _shares(course):
            failed = [seen.failed for seen in _of_share(course, share, protocol)]
            metrics[f"set_{protocol}_failed_{share * 100:.0f}"] = Metric.of(failed, unit)
    if cpu := course.cpu_of_a_release():
        metrics["set_cpu_of_a_release"] = Metric.of(cpu, "s")
        # Of all that the system is: servers that serve, and their releases.
        used = sum(window.cpu or 0.0 for window in course.windows)
        sent = sum(_all(course, protocol).sent for protocol in _UNITS)
        metrics["cpu_per_packet"] = Metric.count(used / sent, "s", sent)
    return metrics


def _plot(courses: Courses, protocol: Protocol, setting: Setting) -> Plot:
    plot = Plot(
        name=f"release-set-{protocol}",
        title=_TITLES[protocol],
        sentence=sentence(courses, protocol),
    )
    with panel(setting.output, plot) as axes:
        for system, course in courses.items():
            shares = _shares(course)
            of = [
                Metric.of([seen.failed for seen in _of_share(course, share, protocol)], "")
                for share in shares
            ]
            spread = [
                [each.value - (each.value if each.low is None else each.low) for each in of],
                [(each.value if each.high is None else each.high) - each.value for each in of],
            ]
            axes.errorbar(
                [share * 100 for share in shares], [each.value for each in of], yerr=spread,
                marker=_MARKERS[system], markersize=5, linewidth=2, capsize=3,
                color=colour(system), label=NAMES[system],
            )  # fmt: skip
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
    for system, course in courses.items():
        seen = _of_share(course, last, protocol)
        failed, sent = sum(each.failed for each in seen), sum(each.sent for each in seen)
        share = f" ({failed / sent:.1%})" if failed else ""
        told.append(f"{NAMES[system]} {failed:,} of {sent:,}{share}")
    return (
        f"With {last:.0%} of {plan.servers} servers released at the same time, "
        f"{_UNITS[protocol]} that failed until all old ones were gone: {', '.join(told)}."
    )


def _table(courses: Courses) -> Table:
    shares = _shares(next(iter(courses.values())))
    rows: list[list[str]] = []
    for protocol in _UNITS:
        for system, course in courses.items():
            total = _all(course, protocol)
            failed = [
                f"{sum(seen.failed for seen in _of_share(course, share, protocol)):,}"
                for share in shares
            ]
            rows.append(
                [
                    "UDP" if protocol == "udp" else "HTTP/1.1", NAMES[system], *failed,
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


def _note(courses: Courses) -> str:
    plan = next(iter(courses.values())).plan
    cpu = _cpu_words(courses)
    return (
        f"The set: {plan.servers} servers of one worker, each with a TCP and a UDP VIP of its own; "
        f"{plan.flows:,} UDP flows of {plan.life} datagrams ({plan.datagrams:,.0f} datagrams a "
        f"second in all) and {plan.requests:,.0f} HTTP requests a second, each on a connection of "
        f"its own, to all of them by turns. Old servers stay for up to {plan.linger:g} s beside "
        f"the new ones. A point is the median of {plan.rounds} releases of that share, with its "
        f"quartiles if there are several.{cpu}"
    )


def _cpu_words(courses: Courses) -> str:
    told: Sequence[str] = [
        f"{NAMES[system]} {Metric.of(cpu, 's').value:.2f} s"
        for system, course in courses.items()
        if (cpu := course.cpu_of_a_release())
    ]
    return f" CPU time of a server's release: {', '.join(told)}." if told else ""


__all__ = ["Courses", "found", "sentence"]
