"""What stamps cost the hosts: octets on the wire, a bulk transfer, requests a second.

Two hosts in namespaces, a link between them; the program on a cgroup that both ends' processes are
in. With and without it by turns, in one run; what is compared are medians.

``python benchmarks/bench_stamp.py [--quick] [--output DIRECTORY]``, as root.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sockway.lab.report import machine
from sockway.lab.stamp_cost import SYSTEMS, UNITS, Figures, compare, ratios


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    rounds, seconds = (3, 0.3) if options.quick else (11, 1.0)
    began = time.monotonic()
    with Progress(console=Console(stderr=True)) as progress:
        line = progress.add_task("measuring", total=2 * rounds)
        found = compare(rounds, seconds, lambda done: progress.update(line, completed=done))
    report(found, options.output, time.monotonic() - began)


def report(found: Figures, output: Path, seconds: float) -> None:
    """Print a table, write JSON."""
    table = Table(title="stamps, in one run", title_justify="left")
    for column in ("", "plain", "stamped", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    systems: dict[str, dict[str, dict[str, float | str]]] = {}
    for metric, unit in UNITS.items():
        values = {
            system: statistics.median(one[metric] for one in rounds)
            for system, rounds in found.items()
        }
        ratio = statistics.median(ratios(found, metric))
        table.add_row(f"{metric}, {unit}", *(f"{values[s]:,.1f}" for s in SYSTEMS), f"{ratio:.3f}")
        for system, value in values.items():
            systems.setdefault(system, {})[metric] = {
                "value": round(value, 3), "unit": unit, "n": len(found[system]),
            }  # fmt: skip
        systems["stamped"][f"{metric}_ratio"] = {
            "value": round(ratio, 4), "unit": "ratio", "n": len(found["stamped"]),
        }  # fmt: skip
    Console().print(table)
    command = " ".join(["python benchmarks/bench_stamp.py", *sys.argv[1:]])
    experiment = {"systems": systems, "command": command, "seconds": round(seconds, 1)}
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"experiments": {"stamp": experiment}, "machine": machine()}, indent=2)
    (output / "stamp.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
