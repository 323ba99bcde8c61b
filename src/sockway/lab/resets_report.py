"""What the experiment `resets` found: its table, its plot, its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.table import Table

from sockway.lab.report import machine
from sockway.lab.resets import Course, Plan, System, run

NAMES: Final[Mapping[str, str]] = {
    "ring": "ring only",
    "table": "connection table",
    "history": "slot history (Sockway)",
}
COLOURS: Final = {"ring": "#c1121f", "table": "#d98324", "history": "#1b7f4b"}
_SETTINGS: Final[dict[Any, Any]] = {"svg.fonttype": "none", "svg.hashsalt": "sockway"}
TITLES: Final = {False: "backends change", True: "backends and balancers change"}

Courses = Mapping[tuple[System, bool], Course]
"""By system, and whether balancers change too."""

__all__ = ["COLOURS", "NAMES", "Course", "Courses", "Plan", "figures", "run", "table", "write"]


def table(courses: Courses) -> Table:
    """For people."""
    page = Table(title="connections broken by the balancers")
    page.add_column("what balancers know")
    for shift in _shifts(courses):
        page.add_column(TITLES[shift], justify="right")
    page.add_column("a change takes", justify="right")
    for system in _systems(courses):
        row = [NAMES[system]]
        for shift in _shifts(courses):
            course = courses[system, shift]
            row.append(f"{course.total:,} of {course.opened:,}")
        seconds = [s for (name, _), c in courses.items() if name == system for s in c.apply_seconds]
        page.add_row(*row, f"{median(seconds) * 1000:.0f} ms")
    return page


def figures(courses: Courses, command: str, seconds: float) -> dict[str, Any]:
    """For programs: the schema of the lab's report."""
    systems: dict[str, dict[str, Any]] = {}
    for (system, shift), course in courses.items():
        suffix = "_with_balancers" if shift else ""
        found = systems.setdefault(system, {})
        found[f"resets{suffix}"] = _metric(course.total, "connections", course.opened)
        found[f"sent{suffix}"] = _metric(course.opened, "connections", 1)
        found[f"apply{suffix}"] = _metric(
            median(course.apply_seconds), "s", len(course.apply_seconds)
        )
    experiment = {"systems": systems, "command": command, "seconds": round(seconds, 1)}
    return {"experiments": {"resets": experiment}, "machine": machine()}


def write(courses: Courses, directory: Path, command: str, seconds: float) -> list[Path]:
    """Write ``resets.json``, ``resets.png`` and ``resets.svg``; their paths."""
    written = [directory / "resets.json"]
    text = json.dumps(figures(courses, command, seconds), indent=2)
    written[0].write_text(text + "\n", encoding="utf-8")
    return written + _draw(courses, directory)


def _draw(courses: Courses, directory: Path) -> list[Path]:
    # Here, for it takes a second to load.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    paths = []
    shifts = _shifts(courses)
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(5 * len(shifts) + 0.5, 4), layout="constrained")
        grid = figure.subplots(1, len(shifts), squeeze=False, sharey=True)
        for axes, shift in zip(grid[0], shifts, strict=True):
            for system in _systems(courses):
                course = courses[system, shift]
                steps = range(len(course.resets) + 1)
                label = f"{NAMES[system]}: {course.total:,} of {course.opened:,}"
                axes.step(
                    steps,
                    [0, *accumulate(course.resets)],
                    where="post",
                    color=COLOURS[system],
                    linewidth=2,
                    label=label,
                )
            axes.set_title(TITLES[shift], loc="left", fontsize=11)
            axes.set_xlabel("changes of the pool", fontsize=9)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(loc="upper left", fontsize=8.5, frameon=False)
            axes.margins(x=0, y=0.3)
            axes.set_ylim(bottom=0)
        grid[0][0].set_ylabel("connections broken, in all", fontsize=9)
        for suffix in ("png", "svg"):
            path = directory / f"resets.{suffix}"
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(path, dpi=150, facecolor="white", metadata=metadata)
            paths.append(path)
    return paths


def _metric(value: float, unit: str, count: int) -> dict[str, Any]:
    return {"value": value, "unit": unit, "n": count}


def _shifts(courses: Courses) -> Sequence[bool]:
    return sorted({shift for _, shift in courses})


def _systems(courses: Courses) -> Sequence[System]:
    return list(dict.fromkeys(system for system, _ in courses))
