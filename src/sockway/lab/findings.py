"""What experiments find, as data: figures for programs; plots, sentences and tables for people.

`Results` is the schema of ``results.json``; other programs may rely on it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Metric(_Model):
    """A figure of one system."""

    value: float
    """A count, or the median of what was measured."""
    unit: str
    n: int
    """Over how many it is counted, or of how many it is the median."""
    low: float | None = None
    """The first quartile, of a median."""
    high: float | None = None
    """The third quartile."""

    @classmethod
    def of(cls, samples: Sequence[float], unit: str) -> Self:
        """The median of samples, with its quartiles."""
        low = high = None
        if len(samples) > 1:
            low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        middle = statistics.median(samples)
        return cls(value=middle, unit=unit, n=len(samples), low=low, high=high)

    @classmethod
    def count(cls, value: float, unit: str, n: int = 1) -> Self:
        """A plain count of `n`."""
        return cls(value=value, unit=unit, n=n)


class Plot(_Model):
    """A picture, in ``NAME.svg`` and ``NAME.png`` of the run's directory."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str
    sentence: str
    """What it shows, made from the figures that were measured."""


class Table(_Model):
    """Figures for people."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class Findings(_Model):
    """What one experiment found."""

    systems: dict[str, dict[str, Metric]]
    """By system and metric."""
    plots: list[Plot] = []
    tables: list[Table] = []
    notes: list[str] = []
    """What a reader has to know: what was done, what the limit was, what can't be seen here."""


class ExperimentResult(_Model):
    """One experiment of a run."""

    systems: dict[str, dict[str, Metric]]
    command: str
    """That makes it again."""
    seconds: float
    quick: bool = False
    seed: int = 1
    error: str | None = None
    """Why it was not finished; then there are no systems."""


class Results(_Model):
    """``results.json``: all of a run."""

    experiments: dict[str, ExperimentResult]
    machine: dict[str, Any]


__all__ = ["ExperimentResult", "Findings", "Metric", "Plot", "Results", "Table"]
