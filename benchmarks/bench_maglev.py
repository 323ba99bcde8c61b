"""How evenly a ring spreads, how long it takes to build, and what a change of backends moves.

    python benchmarks/bench_maglev.py [--json]

The third is the figure of the Maglev paper (Eisenbud et al., NSDI 2016, section 5.3): of the slots
whose backend stays, how many get another one when others fail. A perfect hash would move none.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from statistics import mean, median

from rich.console import Console
from rich.table import Table

from sockway.wire.maglev import Member, build, shares

SIZES = (65_537, 655_373)
BACKENDS = (100, 1000)
FAILED = (0.001, 0.005, 0.01, 0.02, 0.05)
ROUNDS = 9


def ring(names: list[int], size: int) -> list[int]:
    """The backend of each slot."""
    built = build([Member(b"backend-%d" % name, 100) for name in names], size)
    return [names[index] for index in built]


def moved(count: int, size: int, failed: int, chance: random.Random) -> float:
    """Share of the slots of backends that stay which get another one."""
    names = list(range(count))
    gone = set(chance.sample(names, failed))
    before, after = ring(names, size), ring([n for n in names if n not in gone], size)
    kept = [(old, new) for old, new in zip(before, after, strict=True) if old not in gone]
    return sum(old != new for old, new in kept) / len(kept)


def measure() -> list[dict[str, float]]:
    """All of it."""
    chance = random.Random(1)
    found = []
    for count in BACKENDS:
        for size in SIZES:
            members = [Member(b"backend-%d" % name, 100) for name in range(count)]
            times = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                built = build(members, size)
                times.append(time.perf_counter() - began)
            each = shares(built, count)
            row = {
                "backends": count,
                "slots": size,
                "milliseconds": median(times) * 1000,
                "least": min(each) / mean(each) - 1,
                "most": max(each) / mean(each) - 1,
            }
            for share in FAILED:
                failed = max(1, round(count * share))
                runs = [moved(count, size, failed, chance) for _ in range(3)]
                row[f"moved_{failed}"] = mean(runs)
            found.append(row)
    return found


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    found = measure()
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    table = Table("backends", "slots", "built in", "share of a backend", "failed: slots moved")
    for row in found:
        told = [
            f"{name.removeprefix('moved_')}: {value:.2%}"
            for name, value in row.items()
            if name.startswith("moved_")
        ]
        table.add_row(
            f"{row['backends']:,.0f}", f"{row['slots']:,.0f}", f"{row['milliseconds']:.1f} ms",
            f"{row['least']:+.1%} to {row['most']:+.1%}", ", ".join(told),
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
