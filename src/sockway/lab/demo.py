"""The release experiment by itself, shown as it runs: `sockway demo`, or `sockway lab release`."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from sockway.lab.report import NAMES, figures, table
from sockway.lab.runner import made_directory
from sockway.lab.sandbox import Sandbox, sandbox
from sockway.lab.scenario import Progress as State
from sockway.lab.scenario import Result, run
from sockway.lab.suite import ALL_SYSTEMS, KINDS, ORDER, SYSTEMS, Kind, Outcome

QUICK_RELEASES = 3
FULL_RELEASES = 20
WIDTH = 140  # of what goes to a file


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:>3.0f}/{task.total:.0f} releases"),
        TextColumn("{task.fields[requests]:>9,} requests"),
        TextColumn("{task.fields[failed]}"),
        TimeElapsedColumn(),
        console=console,
    )


async def _one(kind: Kind, system: str, releases: int, box: Sandbox, progress: Progress) -> Result:
    """One scenario, with its line of progress."""
    words = f"{kind.labels[next(iter(kind.labels))]} by {NAMES[system]}"
    line: TaskID = progress.add_task(words, total=releases, requests=0, failed="")

    def show(state: State) -> None:
        failed = f"[red]{state.failed:,} failed[/]" if state.failed else "[green]0 failed[/]"
        progress.update(line, completed=state.releases, requests=state.requests, failed=failed)

    result = await run(kind.scenario(system, releases), box, show)
    progress.stop_task(line)
    return result


async def experiment(
    releases: int,
    box: Sandbox,
    console: Console,
    kinds: tuple[Kind, ...] = KINDS,
    systems: tuple[str, ...] = SYSTEMS,
) -> Outcome:
    """Run all *kinds* of load against all *systems*, one after another."""
    began = time.monotonic()
    results: dict[tuple[str, str], Result] = {}
    with _progress(console) as progress:
        for kind in kinds:
            for system in sorted(systems, key=ORDER.index):
                results[kind.key, system] = await _one(kind, system, releases, box, progress)
    return Outcome(results, time.monotonic() - began)


@dataclass(frozen=True)
class Demo:
    """What is tried."""

    releases: int = QUICK_RELEASES
    """Of each server by each system."""
    kinds: tuple[Kind, ...] = KINDS
    systems: tuple[str, ...] = SYSTEMS

    @property
    def command(self) -> str:
        """What a person types to have the same again."""
        words = ["sockway", "lab", "release", "--releases", str(self.releases)]
        if len(self.systems) == 1:
            words += ["--system", *self.systems]
        elif set(self.systems) == set(ALL_SYSTEMS):
            words.append("--takeover")
        if self.kinds != KINDS:
            words += [word for kind in self.kinds for word in ("--load", kind.key)]
        return shlex.join(words)

    def run(self, output: Path, *, show_on_stderr: bool = False) -> tuple[dict[str, Any], bool]:
        """Run the experiment, show it, write its figures and picture to *output*.

        Returns:
            The figures, and whether Sockway lost nothing and nothing broke off.

        Raises:
            ConfigError: the directory can't be made.
            PermissionDenied: it takes root.
            SockwayError: something that is needed is missing.

        """
        made_directory(output)
        console = Console(stderr=show_on_stderr)
        if not console.is_terminal:
            console = Console(width=WIDTH, stderr=show_on_stderr)
        names = ", ".join(NAMES[system] for system in sorted(self.systems, key=ORDER.index))
        console.print(
            f"Releasing real servers under load, {self.releases} times each, in a network "
            f"namespace of their own: {names}."
        )
        with sandbox() as box:
            outcome = asyncio.run(experiment(self.releases, box, console, self.kinds, self.systems))
        console.print()
        console.print(table(outcome))
        found = figures(outcome, self.command)
        written = [output / "release.json"]
        written[0].write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        if set(self.systems) >= set(SYSTEMS):
            # matplotlib takes a second to load: not before the clients are done
            from sockway.lab.plot import write_plot  # noqa: PLC0415

            written += write_plot(outcome, output)
        console.print("Written: " + ", ".join(str(path) for path in written), soft_wrap=True)
        self._conclude(outcome, console)
        return found, outcome.lost_nothing

    def _conclude(self, outcome: Outcome, console: Console) -> None:
        for error in outcome.errors:
            console.print(f"[red]broken off:[/] {error}", soft_wrap=True)
        if not outcome.lost_nothing:
            console.print("[red]Sockway lost something, or did not finish.[/]")
        elif "sockway" in self.systems:
            tally = outcome.tally("sockway")
            console.print(
                f"[green]Sockway: {outcome.releases('sockway')} releases, "
                f"0 of {tally.requests:,} requests and datagrams failed, lost or misrouted.[/]"
            )
