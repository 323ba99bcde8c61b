"""The experiment's picture: what failed when, and when the releases were.

A row for each kind of load, a column for each system; all columns of a row have the
same axes, so that what is seen on the left can be held against the right.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from sockway.lab.report import NAMES
from sockway.lab.suite import KINDS, ORDER, Kind, Outcome
from sockway.lab.tally import BIN_SECONDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sockway.lab.scenario import Result

STEP = 0.5  # seconds that a bar covers
LOST = "#c1121f"
KEPT = "#1b7f4b"
INK = "#333333"
UNIT = {"udp": "datagrams", "http1": "requests", "http3": "requests"}
HEADROOM = 1.35


def _bars(result: Result) -> Counter[int]:
    """Failures by step, from the first answer on."""
    bars: Counter[int] = Counter()
    for when, count in result.total.failures_over_time().items():
        bars[int((when + BIN_SECONDS / 2 - _start(result)) / STEP)] += count
    return bars


def _start(result: Result) -> float:
    """The second of the experiment at which its plot begins: the lead before the releases."""
    first = result.releases[0][0] if result.releases else result.scenario.lead
    return first - result.scenario.lead


def _draw(axes: Axes, kind: Kind, result: Result, top: float, right: float) -> None:
    """One kind of load under one system."""
    start = _start(result)
    for number, (begin, end) in enumerate(result.releases):
        axes.axvspan(begin - start, end - start, color="#dfe7f2", zorder=0, linewidth=0)
        label = (
            "release begins (blue: until the old process is gone; grey: the run is over)"
            if not number
            else None
        )
        axes.axvline(begin - start, color="#5b7db1", linewidth=0.9, zorder=1, label=label)
    # One run may take longer than the other beside it.
    axes.axvspan(result.seconds - start, right, color="#f4f4f4", zorder=0, linewidth=0)
    bars = _bars(result)
    axes.bar(
        [step * STEP for step in bars],
        [count / STEP for count in bars.values()],
        width=STEP,
        align="edge",
        color=LOST,
        zorder=3,
        label="failed or misrouted" if bars else None,
    )
    tally = result.total
    unit = UNIT[kind.key]
    axes.text(
        0.985,
        0.93,
        f"{tally.failed:,} of {tally.requests:,} {unit}",
        transform=axes.transAxes,
        ha="right",
        va="top",
        fontsize=10.5,
        fontweight="bold",
        color=LOST if tally.failed else KEPT,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2.0},
        zorder=5,
    )
    axes.set_ylim(0, top)
    axes.set_xlim(0, right)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5, colors=INK)


def draw(outcome: Outcome) -> Figure:
    """The picture of *outcome*."""
    # The usual way first: the eye goes from there to what it is held against.
    order = tuple(name for name in ORDER if name in outcome.systems)
    kinds = [kind for kind in KINDS if all((kind.key, name) in outcome.results for name in order)]
    size = (5 * len(order), 2.35 * len(kinds) + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(kinds), len(order), squeeze=False, sharey="row", sharex="row")
    for row, kind in zip(grid, kinds, strict=True):
        results = [outcome.results[kind.key, system] for system in order]
        most = max((max(_bars(result).values(), default=0) for result in results), default=0)
        top = max(most / STEP, 1.0) * HEADROOM
        right = max(math.ceil(result.seconds - _start(result)) for result in results)
        for axes, result in zip(row, results, strict=True):
            _draw(axes, kind, result, top, right)
        row[0].set_ylabel(f"failed {UNIT[kind.key]}\na second", fontsize=9, color=INK)
        row[0].set_title(kind.title, loc="left", fontsize=9.5, color=INK)
    for axes in grid[-1]:
        axes.set_xlabel("time, seconds", fontsize=9, color=INK)
    for axes, system in zip(grid[0], order, strict=True):
        axes.annotate(
            f"released by {NAMES[system]}",
            (0.5, 1.2),
            xycoords="axes fraction",
            ha="center",
            fontsize=12.5,
            fontweight="bold",
            color=INK,
        )
    handles = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=2,
        fontsize=9,
        frameon=False,
    )
    return figure


def write_plot(outcome: Outcome, directory: Path) -> list[Path]:
    """Draw *outcome* to ``release.png`` and ``release.svg`` in *directory*; their paths."""
    # Text stays text, and the same figures give the same file.
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sockway",
        "font.family": "sans-serif",
    }
    paths = []
    with mpl.rc_context(settings):
        figure = draw(outcome)
        for suffix in ("png", "svg"):
            path = directory / f"release.{suffix}"
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(path, dpi=150, facecolor="white", metadata=metadata)
            paths.append(path)
    return paths
