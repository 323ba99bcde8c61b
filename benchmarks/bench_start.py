"""What a start of the command costs in CPU, beside the interpreter's own start.

``python benchmarks/bench_start.py [--quick] [--output DIRECTORY]``, as root (`status` asks the
kernel, in a network namespace without services). Each round runs all commands once, so that what
else happens on the machine meets them alike. CPU is user and system time of the process; the
ratio is to ``python -c pass`` of the same run, and says more than seconds on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sockway.kernel import Netns
from sockway.lab.report import machine

BASE = "python -c pass"
COMMANDS = {
    BASE: ["-c", "pass"],
    "sockway --version": ["-m", "sockway", "--version"],
    "sockway --help": ["-m", "sockway", "--help"],
    "sockway status": ["-m", "sockway", "status"],
    "sockway release --help": ["-m", "sockway", "release", "--help"],
    "sockway balancer --help": ["-m", "sockway", "balancer", "--help"],
}
LIMITS = {"sockway --version": 0.25, "sockway --help": 0.25, "sockway status": 0.35}
"""Seconds of CPU that are promised."""


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    with Netns.create() as namespace:
        seconds = namespace.run(lambda: measure(7 if options.quick else 31))
    base = statistics.median(seconds[BASE])
    table = Table(title="CPU of a start, median", title_justify="left")
    for column in ("command", "seconds", "least", "ratio", "promised"):
        table.add_column(column, justify="left" if column == "command" else "right")
    systems = {}
    for name, each in seconds.items():
        middle = statistics.median(each)
        systems[name] = {"seconds": middle, "least": min(each), "ratio": middle / base}
        promised = f"{LIMITS[name]:.2f}" if name in LIMITS else ""
        table.add_row(name, f"{middle:.3f}", f"{min(each):.3f}", f"{middle / base:.1f}", promised)
    Console().print(table)
    options.output.mkdir(parents=True, exist_ok=True)
    told = {"systems": systems, "promised": LIMITS, "machine": machine()}
    (options.output / "start.json").write_text(json.dumps(told, indent=2), encoding="utf-8")


def measure(rounds: int) -> dict[str, list[float]]:
    """Return seconds of CPU of each command in each round."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for arguments in COMMANDS.values():
        cpu(arguments)  # the first time compiles, and fills the page cache
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            found[name].append(cpu(arguments))
    return found


def cpu(arguments: list[str]) -> float:
    """Run Python with these arguments; return seconds of user and system time."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} ended with status {process.returncode}")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
