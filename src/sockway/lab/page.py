"""What a run found, written: ``results.json`` for programs, ``report.html`` for people."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sockway.lab.findings import Metric, Plot, Results
from sockway.lab.runner import Done, Run, results

_ID: Final = re.compile(r'(\bid="|href="#|url\(#)')
_SCALES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_SMALL: Final = ((1e-3, 1e3, "m"), (1e-6, 1e6, "µ"), (0.0, 1e9, "n"))


def write(done: Sequence[Done], run: Run, names: Sequence[str]) -> tuple[Results, Path]:
    """Write both; the results, and the page's path.

    Args:
        done: what was run.
        run: how.
        names: what was asked for; nothing means all.

    """
    found = results(done)
    text = found.model_dump_json(indent=2, exclude_none=True)
    (run.output / "results.json").write_text(text + "\n", encoding="utf-8")
    return found, write_page(done, found, run.output, run.command(names))


def write_page(done: Sequence[Done], found: Results, directory: Path, command: str) -> Path:
    """Write ``report.html``; its path."""
    # Here, for only a report needs it.
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("sockway.lab"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["figure"] = figure
    environment.filters["spread"] = spread
    path = directory / "report.html"
    text = environment.get_template("report.html.j2").render(
        done=done,
        machine=_described(found.machine),
        command=command,
        when=time.strftime("%Y-%m-%d %H:%M %Z"),
        seconds=round(sum(each.result.seconds for each in done)),
        picture=lambda plot: inlined(directory, plot),
    )
    path.write_text(text, encoding="utf-8")
    return path


def inlined(directory: Path, plot: Plot) -> Any:
    """A plot's SVG as part of a page: its ids its own, its size the page's."""
    from markupsafe import Markup  # noqa: PLC0415 - comes with jinja2

    text = (directory / f"{plot.name}.svg").read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    head, _, rest = text.partition(">")
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    label = html.escape(f"{plot.title}: {plot.sentence}", quote=True)
    # What matplotlib says of itself is nothing for readers.
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = _ID.sub(lambda match: f"{match[1]}{plot.name}-", rest)
    return Markup(f'{head} role="img" aria-label="{label}">{rest}')  # noqa: S704 - escaped above


def figure(metric: Metric) -> str:
    """A metric's value as people write it."""
    return _number(metric.value, metric.unit)


def spread(metric: Metric) -> str:
    """Its quartiles, or nothing."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{_number(metric.low, metric.unit)} to {_number(metric.high, metric.unit)}"


def _number(value: float, unit: str) -> str:
    if unit == "1":
        return f"{value:.3g}"
    if unit == "s" and 0 < value < 1:
        for least, factor, prefix in _SMALL:
            if value >= least:
                return f"{value * factor:.3g} {prefix}s"
    if value == int(value) and abs(value) < 1e15:  # noqa: PLR2004 - whole in a float
        return f"{int(value):,} {unit}"
    for scale, prefix in _SCALES:
        if abs(value) >= scale and "/" in unit:
            return f"{value / scale:.3g} {prefix} {unit}"
    return f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:.3g} {unit}"  # noqa: PLR2004


def _described(machine: dict[str, Any]) -> dict[str, str]:
    gibi = machine["memory_bytes"] / 2**30
    return {
        "processor": f"{machine['cpu']}, {machine['cores']} cores for this process",
        "memory": f"{gibi:.1f} GiB",
        "kernel": f"Linux {machine['kernel']}",
        "Python": str(machine["python"]),
    }


__all__ = ["figure", "inlined", "spread", "write", "write_page"]
