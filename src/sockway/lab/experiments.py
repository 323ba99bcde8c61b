"""``sockway lab run``: experiments by name, shown as they run."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sockway.lab.resets import SYSTEMS, Course, Plan, System, run
from sockway.lab.sandbox import raise_file_limit

EXPERIMENTS: Final = ("resets",)
FULL: Final = Plan()
QUICK: Final = Plan(connections=300, changes=20, churn=10)


def resets(output: Path, *, quick: bool, console: Console) -> list[Path]:
    """Connections while backends and balancers change; the files written.

    Raises:
        SockwayError: a part of the lab does not come up.

    """
    from sockway.lab.resets_report import NAMES, TITLES, table, write  # noqa: PLC0415

    raise_file_limit()
    output.mkdir(parents=True, exist_ok=True)
    base = QUICK if quick else FULL
    console.print(
        f"{base.connections:,} connections through two balancers, while backends are added and "
        f"removed {base.changes} times, and then the same while balancers change too."
    )
    began = time.monotonic()
    courses: dict[tuple[System, bool], Course] = {}
    columns = (
        TextColumn("{task.description:<60}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:>3.0f}/{task.total:.0f} changes"),
        TextColumn("{task.fields[broken]:>6,} broken"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for shift in (False, True):
            plan = Plan(base.connections, base.changes, base.backends, base.churn, shift, base.seed)
            for system in SYSTEMS:
                words = f"{NAMES[system]}, {TITLES[shift]}"
                line = progress.add_task(words, total=plan.changes, broken=0)

                def show(course: Course, line: int = line) -> None:
                    done = len(course.resets)
                    progress.update(line, completed=done, broken=course.total)  # type: ignore[arg-type]

                courses[system, shift] = run(system, plan, show)
                progress.stop_task(line)
    console.print(table(courses))
    command = f"sockway {shlex.join(sys.argv[1:])}"
    return write(courses, output, command, time.monotonic() - began)
