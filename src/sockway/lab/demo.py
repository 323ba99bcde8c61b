"""The release experiment from beginning to end, shown as it runs: ``make demo``.

``python -m sockway.lab.demo`` and ``sockway lab release`` are this. It ends with status
1 if Sockway lost anything, or if a scenario broke off.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from sockway.lab.report import NAMES, table, write_json
from sockway.lab.sandbox import Sandbox, sandbox
from sockway.lab.scenario import Progress as State
from sockway.lab.scenario import Result, run
from sockway.lab.suite import KINDS, ORDER, SYSTEMS, Kind, Outcome

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


def demo(
    output: Path,
    *,
    releases: int = QUICK_RELEASES,
    kinds: tuple[Kind, ...] = KINDS,
    systems: tuple[str, ...] = SYSTEMS,
) -> int:
    """Run the experiment, show it, write its figures and picture to *output*.

    Returns the exit status: 0 if Sockway lost nothing. Raises `PermissionDenied`
    without root, `SockwayError` where something that is needed is missing.
    """
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(
        f"Releasing real servers under load, {releases} times each, in a network namespace "
        f"of their own: {', '.join(NAMES[system] for system in sorted(systems, key=ORDER.index))}."
    )
    with sandbox() as box:
        outcome = asyncio.run(experiment(releases, box, console, kinds, systems))
    console.print()
    console.print(table(outcome))
    write_json(outcome, output / "release.json")
    written = [output / "release.json"]
    if set(systems) >= set(SYSTEMS):
        # matplotlib takes a second to load: not before the clients are done
        from sockway.lab.plot import write_plot  # noqa: PLC0415

        written += write_plot(outcome, output)
    console.print("Written: " + ", ".join(str(path) for path in written), soft_wrap=True)
    for error in outcome.errors:
        console.print(f"[red]broken off:[/] {error}", soft_wrap=True)
    if not outcome.lost_nothing:
        console.print("[red]Sockway lost something, or did not finish.[/]")
        return 1
    if "sockway" in systems:
        tally = outcome.tally("sockway")
        console.print(
            f"[green]Sockway: {outcome.releases('sockway')} releases, "
            f"0 of {tally.requests:,} requests and datagrams failed, lost or misrouted.[/]"
        )
    return 0


if __name__ == "__main__":
    from sockway.lab.cli import main

    main()
