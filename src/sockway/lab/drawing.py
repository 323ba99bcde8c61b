"""How plots of experiments look, and where they go: one file for a page, one for all else.

The SVG takes its ink from the page around it, so that it can be read in the dark; the PNG is
black on white. Each plot is one panel, small enough for a phone: pages put them side by side
where there is room.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sockway.lab.findings import Metric, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK: Final = "#2b2f33"
_FAINT: Final = "#8a8f94"
SIZE: Final = (5.2, 3.5)
COLOURS: Final[Mapping[str, str]] = {
    "sockway": "#2a9d6f",
    "reuseport": "#d1495b",
    "takeover": "#d98324",
    "single-acceptor": "#8d6cab",
    "ring": "#d1495b",
    "table": "#d98324",
    "ipvs": "#8d6cab",
    "history": "#2a9d6f",
    "stamps": "#3b82c4",
    "per-vip": "#d1495b",
    "wildcard": "#d98324",
    "sk_lookup": "#3b82c4",
    "hash": "#3b82c4",
    "weights": "#d98324",
    "cpu": "#2a9d6f",
    "exclusive": "#8d6cab",
    "kernel": "#d1495b",
    "balancer": "#3b82c4",
}
"""By system; strong enough on white and on black."""
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def panel(directory: Path, plot: Plot, size: tuple[float, float] = SIZE) -> Iterator[Axes]:
    """Axes to draw one plot in; it is written when the block ends."""
    # Here, for it takes a second to load.
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context({**_STYLE, "svg.hashsalt": plot.name}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_title(plot.title)
        yield axes
        save(directory, plot, figure)


def save(directory: Path, plot: Plot, figure: Figure) -> None:
    """Write a figure as ``NAME.svg`` and ``NAME.png``."""
    figure.savefig(directory / f"{plot.name}.png", dpi=150, facecolor="white")
    path = directory / f"{plot.name}.svg"
    figure.savefig(path, transparent=True, metadata={"Date": None})
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(INK, "currentColor"), encoding="utf-8")


def decades(axis: Axis) -> None:
    """Make a logarithmic axis readable: numbers as people write them, a few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415

    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def bars(axes: Axes, metrics: Mapping[str, Metric], names: Mapping[str, str], words: str) -> None:
    """A bar for each system, with its quartiles and its value in `words`' format."""
    for place, (system, metric) in enumerate(metrics.items()):
        axes.bar(place, metric.value, color=colour(system), width=0.6)
        if metric.low is not None and metric.high is not None:
            spread = [[metric.value - metric.low], [metric.high - metric.value]]
            axes.errorbar(place, metric.value, yerr=spread, color=_FAINT, capsize=4, linewidth=1.5)
        axes.annotate(
            words.format(metric.value), (place, max(metric.value, metric.high or 0)),
            xytext=(0, 4), textcoords="offset points", ha="center", fontweight="bold",
        )  # fmt: skip
    axes.set_xticks(range(len(metrics)), [names[system] for system in metrics])
    axes.margins(y=0.15)
    axes.set_ylim(bottom=0)


def curve(
    axes: Axes, places: Sequence[float], metrics: Sequence[Metric], system: str, label: str, *,
    marker: str = "o",
) -> None:  # fmt: skip
    """A line through a system's medians, with their quartiles where there are several samples."""
    spread = [
        [each.value - (each.value if each.low is None else each.low) for each in metrics],
        [(each.value if each.high is None else each.high) - each.value for each in metrics],
    ]
    axes.errorbar(
        places, [each.value for each in metrics], yerr=spread, marker=marker, markersize=4,
        linewidth=2, capsize=3, color=colour(system), label=label,
    )  # fmt: skip


def colour(system: str) -> str:
    """A system's."""
    return COLOURS.get(system, _FAINT)


__all__ = ["COLOURS", "INK", "SIZE", "bars", "colour", "curve", "decades", "panel", "save"]
