"""The table that turns a hash into a worker, by weight.

A generation's table has SPREAD_SLOTS slots, each with a worker's number; a new flow's hash picks a
slot. Workers get slots in proportion to their weights by largest remainder, so the error is below
one slot each. A change of weights moves only as many slots as the change asks for: a slot keeps its
worker where that worker still has a claim on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sockway.errors import ConfigError


def check_weights(weights: Sequence[float], workers: int) -> None:
    """Refuse weights that are no split of the load over `workers`.

    Raises:
        ConfigError: not one weight for each worker, a negative or endless one, or all 0.

    """
    if len(weights) != workers:
        raise ConfigError(
            f"{len(weights)} weights for {workers} workers",
            hint="give one weight for each worker, in the order of their numbers",
        )
    for worker, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(
                f"weight {weight!r} of worker {worker} can't be used",
                hint="use 0 (no new flows) or a positive number",
            )
    if not any(weights):
        raise ConfigError("all weights are 0", hint="leave at least one worker a weight above 0")


def shares(weights: Sequence[float], slots: int) -> list[int]:
    """How many of `slots` each worker gets: largest remainder, earlier workers first in a tie."""
    total = math.fsum(weights)
    exact = [weight / total * slots for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda w: (counts[w] - exact[w], w))
    # A weight of 0 has no remainder, so it stays without slots.
    for worker in by_remainder[: slots - sum(counts)]:
        counts[worker] += 1
    return counts


def assign(weights: Sequence[float], slots: int, before: Sequence[int] = ()) -> list[int]:
    """A worker for each slot, close to the assignment `before`.

    Args:
        weights: one for each worker, checked by `check_weights`.
        slots: how many there are.
        before: the table so far, or nothing for a new one.

    """
    left = shares(weights, slots)
    table = [-1] * slots
    for slot, worker in enumerate(before):
        if worker < len(left) and left[worker] > 0:
            table[slot] = worker
            left[worker] -= 1
    free = (worker for worker, count in enumerate(left) for _ in range(count))
    for slot, worker in enumerate(table):
        if worker < 0:
            table[slot] = next(free)
    return table


def cpu_points(cpus: int, table_size: int) -> tuple[list[int], int]:
    """Where each CPU stands on the line of workers, and how wide a CPU is on it.

    CPUs are taken in the order of their numbers, which on Linux keeps the CPUs of a NUMA node in
    runs; a run of CPUs shares a run of workers.

    Returns:
        A point for each of `table_size` CPU numbers and the width, as fractions of 2**32.

    """
    width = (1 << 32) // cpus
    return [(cpu % cpus) * width for cpu in range(table_size)], width - 1
