"""The experiment `scale`: how much UDP a VIP takes as load grows, until over twenty times as much.

What one thread can accept is the limit where one thread accepts, however many workers there are.
Load is given in multiples of a third of that, so that the accepting thread is full at 3x.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Final, get_args

from sockway.lab import scale_report
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings
from sockway.lab.sandbox import sandbox
from sockway.lab.scale_clients import Clients
from sockway.lab.scale_points import FULL_AT, Point
from sockway.lab.scale_systems import Name, System, cpu_seconds, running

FACTORS: Final = (1, 2, 3, 4, 6, 9, 12, 16, 20, 24, 30)
QUICK: Final = (1, 3, 21)
_FULL: Final = 0.8
"""Share of what is offered; a thread that does not keep up with it has too much."""
_FIRST: Final = 2000.0
"""Datagrams a second with which the search for that begins."""
_DOUBLINGS: Final = 8


@dataclass(frozen=True)
class Pace:
    """How long each load lasts."""

    rounds: int
    warm: float
    """Seconds of the load before it is measured."""
    seconds: float


@dataclass(frozen=True)
class Capacity:
    """What one accepting thread takes."""

    rate: float
    """Datagrams answered a second."""
    full: bool
    """Whether it had more than it could take; if not, this is as much as it was given."""


def experiment(setting: Setting) -> Findings:
    """Find out what one thread takes; then all systems at all loads.

    Raises:
        SockwayError: a system can't be had here.

    """
    factors = QUICK if setting.quick else FACTORS
    pace = Pace(1, 0.2, 0.8) if setting.quick else Pace(3, 0.5, 3.0)
    points: dict[Name, list[list[Point]]] = {}
    with sandbox() as box:
        os.environ.update(box.environment)
        with setting.step("what one accepting thread takes", pace.rounds, "rounds") as step:
            with _loaded("single-acceptor") as (system, clients, by_kernel):
                # One that has just started answers late; that would look as if it were full.
                clients.offer(_FIRST / 2, pace.warm)
                capacity = capacity_by(
                    lambda rate: measure(system, clients, 0, rate, pace), pace.rounds
                )
            step.at(pace.rounds, f"{capacity.rate:,.0f} datagrams/s")
        base = capacity.rate / FULL_AT
        for name in get_args(Name):
            total = pace.rounds * len(factors)
            with setting.step(scale_report.NAMES[name], total, "loads") as step:
                points[name] = []
                for number in range(pace.rounds):
                    points[name].append([])
                    with _loaded(name) as (system, clients, _):
                        for factor in factors:
                            point = measure(system, clients, factor, factor * base, pace)
                            points[name][-1].append(point)
                            done = number * len(factors) + len(points[name][-1])
                            step.at(done, f"{factor}x: {point.rate:,.0f}/s, {point.lost:.0%} lost")
    circumstances = scale_report.Circumstances(
        full=capacity.rate, was_full=capacity.full, by_kernel=by_kernel
    )
    return scale_report.found(points, circumstances, setting)


@contextlib.contextmanager
def _loaded(name: Name) -> Iterator[tuple[System, Clients, bool]]:
    with (
        running(name, scale_report.WORKERS, scale_report.SHARE) as (system, by_kernel),
        contextlib.closing(Clients()) as clients,
    ):
        yield system, clients, by_kernel


def capacity_by(measure: Callable[[float], Point], rounds: int) -> Capacity:
    """What is answered of a load that is too much: doubled until it is, then so many times.

    Doubling ends where the generator can't follow, too.
    """
    rate = _FIRST
    tried: list[Point] = []
    for _ in range(_DOUBLINGS):
        point = measure(rate)
        tried.append(point)
        if point.rate < _FULL * point.sent / point.seconds:
            rates = [point.rate, *(measure(rate).rate for _ in range(rounds - 1))]
            return Capacity(median(rates), full=True)
        if point.held_back:
            break
        rate *= 2
    return Capacity(max(point.rate for point in tried), full=False)


def measure(system: System, clients: Clients, factor: float, rate: float, pace: Pace) -> Point:
    """What becomes of one load; answers that are late are waited for."""
    clients.offer(rate, pace.warm)
    used, dropped = cpu_seconds(system), clients.dropped()
    phase = clients.offer(rate, pace.seconds)
    used = cpu_seconds(system) - used
    clients.settle(3.0)
    return Point(
        factor=factor, offered=rate, sent=phase.sent, answered=clients.answered,
        within=phase.within, seconds=pace.seconds, cpu=used, dropped=clients.dropped() - dropped,
    )  # fmt: skip


__all__ = ["Capacity", "Pace", "capacity_by", "experiment", "measure"]
