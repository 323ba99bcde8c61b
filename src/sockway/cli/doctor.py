"""`sockway doctor`: what this machine has, and what to do about what it lacks."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sockway.cli.output import out, print_json
from sockway.errors import SockwayError
from sockway.kernel.features import REPORT, Feature, probe_all, unforeseen


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Tell what this machine can do, and what to do about what it can't.

    Exits with 1 if something is missing that every service needs.
    """
    features = [*probe_all(), *_of_network()]
    if json:
        print_json([asdict(feature) for feature in features])
    else:
        _show(features)
    if any(feature.required and not feature.ok for feature in features):
        raise typer.Exit(1)


def _of_network() -> Sequence[Feature]:
    """Return the rows about balancers and backends here; none where there are none."""
    need = "balancers and backends of this network namespace"
    try:
        from sockway.balancer.diagnosis import diagnose  # noqa: PLC0415 - costly

        return diagnose()
    except SockwayError as error:
        return [Feature("network", False, error.message, need, error.hint or "", False)]
    except Exception as error:  # noqa: BLE001 - the rows about the machine are shown all the same
        return [Feature("network", False, unforeseen(error), need, REPORT, False)]


def _show(features: Sequence[Feature]) -> None:
    table = Table(title=f"Linux {platform.release()}", title_justify="left", box=None)
    for column in ("", "feature", "found", "needed for"):
        table.add_column(column)
    for feature in features:
        table.add_row(
            _mark(feature), escape(feature.name), escape(feature.detail), escape(feature.need)
        )
    out.print(table)
    lacking = [feature for feature in features if not feature.ok]
    if not lacking:
        out.print("\nEverything is there.")
        return
    out.print("\nWhat to do (what every service needs comes first):")
    for required in (True, False):
        remedies: dict[str, list[str]] = {}
        for feature in lacking:
            if feature.required is required:
                remedies.setdefault(feature.remedy, []).append(feature.name)
        for remedy, names in remedies.items():
            out.print(f"  {escape(', '.join(names))}:\n      {escape(remedy)}", soft_wrap=True)


def _mark(feature: Feature) -> str:
    if feature.ok:
        return "[green]yes[/]"
    return "[red]NO[/]" if feature.required else "[yellow]no[/]"
