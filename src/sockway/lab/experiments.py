"""The experiments of ``sockway lab run``, by name, and what each is given.

An experiment is a function from a `Setting` to `Findings`, in a module that is loaded only
when it is run. It runs in a process of its own (see `runner`), so it may enter namespaces, and what
it forgets goes with the process. It writes its plots with `drawing.save`, tells how far it is with
`Setting.step`, and raises `SockwayError` where it can't be done.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sockway.errors import ConfigError
from sockway.lab.findings import Findings

WIDTH: Final = 140
"""Columns of what goes to a file."""


class Step:
    """A line of progress."""

    def __init__(self, progress: Progress, line: TaskID) -> None:
        """Show it as `progress`'s line."""
        self._progress = progress
        self._line = line

    def at(self, done: float, words: str = "") -> None:
        """Say how much is done, and what came of it so far."""
        self._progress.update(self._line, completed=done, words=words)


@dataclass(frozen=True)
class Setting:
    """What an experiment is given."""

    output: Path
    """Where plots go; it is there."""
    quick: bool
    """Whether to take seconds and not minutes."""
    seed: int
    """Of all that is drawn by lot."""
    progress: Progress

    @contextmanager
    def step(self, words: str, total: float, unit: str = "") -> Iterator[Step]:
        """Show a part of it while the block lasts."""
        line = self.progress.add_task(words, total=total, unit=unit, words="")
        try:
            yield Step(self.progress, line)
        finally:
            self.progress.stop_task(line)

    def say(self, words: str) -> None:
        """One line for whoever watches."""
        self.progress.console.print(words, soft_wrap=True)


Work = Callable[[Setting], Findings]


@dataclass(frozen=True)
class Experiment:
    """An experiment that can be asked for by its name."""

    name: str
    description: str
    """In one line."""
    entry: str
    """Its function, `module:function`."""
    limit: tuple[float, float]
    """Seconds after which it is ended: quick, full."""


_ALL: Final = (
    Experiment(
        "release",
        "servers released under load: what clients lose, and what it costs",
        "sockway.lab.release:experiment",
        (240, 1800),
    ),
    Experiment(
        "scale",
        "how much UDP a VIP takes: one accepting thread, or a socket for each worker",
        "sockway.lab.scale:experiment",
        (120, 900),
    ),
    Experiment(
        "resets",
        "connections that last, while backends and balancers come and go",
        "sockway.lab.resets_report:experiment",
        (180, 3600),
    ),
    Experiment(
        "bind",
        "what one more VIP costs where thousands share a port: binds, a wildcard, sk_lookup",
        "sockway.lab.bind:experiment",
        (60, 600),
    ),
    Experiment(
        "spread",
        "workers' load under skewed flows: by hash, by weights that follow the load, by CPU",
        "sockway.lab.spread:experiment",
        (60, 300),
    ),
    Experiment(
        "cost",
        "what each program takes of a packet's time, beside the kernel alone",
        "sockway.lab.cost:experiment",
        (90, 900),
    ),
)
EXPERIMENTS: Final = {each.name: each for each in _ALL}


def chosen(names: list[str]) -> list[Experiment]:
    """The experiments of these names, each once; all if none is named.

    Raises:
        ConfigError: there is none of a name.

    """
    for name in names:
        if name not in EXPERIMENTS:
            raise ConfigError(
                f"there is no experiment {name!r}", hint=f"there are: {', '.join(EXPERIMENTS)}"
            )
    return [EXPERIMENTS[name] for name in dict.fromkeys(names or EXPERIMENTS)]


def work_of(entry: str) -> Work:
    """The function that an entry names."""
    module, _, function = entry.partition(":")
    return cast("Work", getattr(importlib.import_module(module), function))


def shown(console: Console | None = None) -> Progress:
    """Progress as all experiments show it: on standard error, for output may be JSON."""
    if console is None:
        console = Console(stderr=True)
        if not console.is_terminal:
            console = Console(stderr=True, width=WIDTH)
    return Progress(
        TextColumn("  {task.description:<56}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:>4.0f}/{task.total:.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
        console=console,
    )


__all__ = ["EXPERIMENTS", "Experiment", "Setting", "Step", "Work", "chosen", "shown", "work_of"]
