"""What a block of AES-128 costs in XDP: by the balancer's tables, and by the kernel's cipher.

``python benchmarks/bench_aes.py [--quick] [--output DIRECTORY]``, as root. All figures are net of a
program that copies the block.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from hatch_build import compile_object  # noqa: E402
from sockway.kernel import BpfObject  # noqa: E402
from sockway.lab.report import machine  # noqa: E402
from sockway.wire.aes import decryption_keys, encryption_keys  # noqa: E402
from sockway.wire.quic_lb import aes  # noqa: E402

FRAME = bytes(64)
KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
PLAIN = bytes.fromhex("3243f6a8885a308d313198a2e0370734")
SEEN = {"encrypt": 12, "decrypt": 8}
"""Octets of the result that the balancer's tables give: nobody needs the others."""


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    rounds, count = (5, 100_000) if options.quick else (15, 500_000)
    began = time.monotonic()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "aes.bpf.o"
        compile_object(HERE / "bpf" / "aes.bpf.c", target)
        with BpfObject.open(target) as made:
            made.load()
            systems = measure(made, rounds, count)
    table = Table(title="ns a block of AES-128, net of a copy", title_justify="left")
    for column in ("cipher", "encrypt", "decrypt"):
        table.add_column(column, justify="left" if column == "cipher" else "right")
    for name, metrics in systems.items():
        table.add_row(
            name, *(f"{metrics[way]['value']} ± {metrics[way]['spread']}" for way in SEEN)
        )
    Console().print(table)
    command = " ".join(["python benchmarks/bench_aes.py", *sys.argv[1:]])
    experiment = {"systems": systems, "command": command, "seconds": time.monotonic() - began}
    options.output.mkdir(parents=True, exist_ok=True)
    written = json.dumps({"experiments": {"aes": experiment}, "machine": machine()}, indent=2)
    (options.output / "aes.json").write_text(written + "\n", encoding="utf-8")


def measure(
    made: BpfObject, rounds: int, count: int
) -> dict[str, dict[str, dict[str, float | str]]]:
    """Median and interquartile range of ns a block, by cipher and direction."""
    task = made.map("tasks").mmap(made.types.struct("task"))
    task.key[:] = KEY
    task.encryption[:], task.decryption[:] = encryption_keys(KEY), decryption_keys(KEY)
    blocks = {"encrypt": PLAIN, "decrypt": aes(KEY)[0](PLAIN)}
    results = {"encrypt": blocks["decrypt"], "decrypt": PLAIN}
    if error := made.program("prepare").test_run(None, context=bytes(8)).retval:
        raise SystemExit(f"the kernel makes no cipher ready: {os.strerror(error)}")
    empty = made.program("empty")
    systems: dict[str, dict[str, dict[str, float | str]]] = {}
    for system in ("tables", "kernel"):
        for way, seen in SEEN.items():
            task_from = getattr(task, "from")
            task_from[:] = blocks[way]
            program = made.program(f"{system}_{way}")
            program.test_run(FRAME)
            if bytes(task.to)[:seen] != results[way][:seen]:
                raise SystemExit(f"{system} can't {way}")
            found = []
            for _ in range(rounds):
                before = empty.test_run(FRAME, repeat=count).duration
                full = program.test_run(FRAME, repeat=count).duration
                found.append(full - before)
            low, middle, high = statistics.quantiles(found, n=4)
            systems.setdefault(system, {})[way] = {
                "value": round(middle, 1), "unit": "ns", "n": rounds,
                "spread": round(high - low, 1),
            }  # fmt: skip
    return systems


if __name__ == "__main__":
    main()
