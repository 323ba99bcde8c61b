"""The experiment `resets` for the report: its parts, a plot and a sentence for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

from sockway.lab import resets_quic
from sockway.lab.drawing import colour, panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.ipvs import lacking
from sockway.lab.resets import SYSTEMS, Course, Plan, System, run

NAMES: Final[Mapping[str, str]] = {
    "ring": "ring only",
    "table": "connection table",
    "ipvs": "IPVS",
    "history": "slot history (Sockway)",
    "stamps": "stamps (Sockway)",
}
TITLES: Final = {False: "backends change", True: "backends and balancers change"}

_NOTE: Final = (
    "{plan.connections:,} TCP connections are open at any time, through two balancers behind a "
    "router with ECMP; between two changes {plan.churn} end by themselves and are followed by new "
    "ones. Backends that leave the pool go on serving, so what breaks is broken by the balancers. "
    "These change in turn: the router sends all to one of them, that one dies, a new one joins. "
    "There is no load to speak of: neither clients nor servers are a limit."
)

Courses = Mapping[tuple[System, bool], Course]
"""By system, and whether balancers change too."""


def experiment(setting: Setting) -> Findings:
    """Connections while backends change, while balancers change too, and QUIC's while all does.

    Raises:
        SockwayError: a part of the lab does not come up.

    """
    size = (300, 15, 5, 10) if setting.quick else (10_000, 100, 8, 20)
    courses: dict[tuple[System, bool], Course] = {}
    left_out = lacking()
    systems = [system for system in SYSTEMS if system != "ipvs" or not left_out]
    # Of both, the one that has all that the other has.
    for shift in (True,) if setting.quick else (False, True):
        plan = Plan(*size, shift=shift, seed=setting.seed)
        for system in systems:
            words = f"{NAMES[system]}, {TITLES[shift]}"
            with setting.step(words, plan.changes, "changes") as step:
                courses[system, shift] = run(
                    system,
                    plan,
                    lambda course, step=step: step.at(  # type: ignore[misc]
                        len(course.resets), f"{course.total:,} broken"
                    ),
                )
    findings = _together(found(courses, setting), resets_quic.findings(setting))
    if left_out:
        findings.notes.append(f"IPVS is left out: {left_out}.")
    return findings


def _together(one: Findings, other: Findings) -> Findings:
    systems = {
        name: one.systems.get(name, {}) | other.systems.get(name, {})
        for name in dict.fromkeys([*one.systems, *other.systems])
    }
    return Findings(
        systems={name: _in_all(metrics) | metrics for name, metrics in systems.items()},
        plots=[*one.plots, *other.plots],
        tables=[*one.tables, *other.tables],
        notes=[*one.notes, *other.notes],
    )


def _in_all(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """TCP and QUIC, whatever changes, by the names that all experiments have."""
    resets, sent = (
        sum(
            int(metric.value)
            for key, metric in metrics.items()
            if key.removeprefix("tcp_").removeprefix("quic_").startswith(name)
        )
        for name in ("resets", "sent")
    )
    return {
        "resets": Metric.count(resets, "connections", sent),
        "sent": Metric.count(sent, "connections"),
    }


def found(courses: Courses, setting: Setting) -> Findings:
    """The courses as findings; their plots are drawn."""
    plots = []
    plan = next(iter(courses.values())).plan
    for shift in _shifts(courses):
        part = {system: c for (system, with_shift), c in courses.items() if with_shift == shift}
        name = "resets-balancers" if shift else "resets-backends"
        plot = Plot(name=name, title=TITLES[shift], sentence=sentence(part, shift=shift))
        with panel(setting.output, plot) as axes:
            for system, course in part.items():
                steps = range(len(course.resets) + 1)
                broken = [0, *accumulate(course.resets)]
                axes.step(
                    steps, broken, where="post", color=colour(system), linewidth=2,
                    label=f"{NAMES[system]}: {course.total:,} of {course.opened:,}",
                )  # fmt: skip
            axes.set_xlabel("changes of the pool")
            axes.set_ylabel("connections broken, in all")
            axes.legend(loc="upper left")
            axes.margins(x=0, y=0.35)
            axes.set_ylim(bottom=0)
            axes.set_xlim(0, plan.changes + 0.5)
            axes.locator_params(axis="x", integer=True)
        plots.append(plot)
    return Findings(
        systems=_metrics(courses),
        plots=plots,
        tables=[_table(courses)],
        notes=[_NOTE.format(plan=plan)],
    )


def sentence(part: Mapping[System, Course], *, shift: bool) -> str:
    """What the plot of one part shows."""
    told = [
        f"{course.total / course.opened:.1%} of {course.opened:,} with {NAMES[system]}"
        for system, course in part.items()
        if course.total
    ]
    safe = [
        f"{NAMES[system]} (of {course.opened:,})"
        for system, course in part.items()
        if not course.total
    ]
    changes = max(len(course.resets) for course in part.values())
    also = ", with a change of balancers at each fifth," if shift else ""
    broken = ", ".join(told) or "none"
    end = f" None broke with {' or '.join(safe)}." if safe and told else ""
    return f"{changes} changes of the pool{also} broke of the connections: {broken}.{end}"


def _table(courses: Courses) -> Table:
    shifts = _shifts(courses)
    rows = []
    for system in dict.fromkeys(system for system, _ in courses):
        row = [NAMES[system]]
        for shift in shifts:
            course = courses[system, shift]
            row.append(f"{course.total:,} of {course.opened:,}")
        apply = Metric.of(_apply_seconds(courses, system), "s")
        row.append(f"{apply.value * 1000:.0f} ms")
        rows.append(row)
    return Table(
        title="Connections broken by the balancers",
        columns=["what balancers know", *(TITLES[shift] for shift in shifts), "a change takes"],
        rows=rows,
    )


def _metrics(courses: Courses) -> dict[str, dict[str, Metric]]:
    systems: dict[str, dict[str, Metric]] = {}
    for (system, shift), course in courses.items():
        suffix = "_balancers" if shift else "_backends"
        metrics = systems.setdefault(system, {})
        metrics[f"tcp_resets{suffix}"] = Metric.count(course.total, "connections", course.opened)
        metrics[f"tcp_sent{suffix}"] = Metric.count(course.opened, "connections")
        metrics[f"apply{suffix}"] = Metric.of(course.apply_seconds, "s")
    return systems


def _apply_seconds(courses: Courses, system: System) -> list[float]:
    return [s for (name, _), c in courses.items() if name == system for s in c.apply_seconds]


def _shifts(courses: Courses) -> Sequence[bool]:
    return sorted({shift for _, shift in courses})


__all__ = ["NAMES", "TITLES", "experiment", "found", "sentence"]
