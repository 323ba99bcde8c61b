"""What the socket router costs: packets a second, ns a packet, time to publish.

Part one compares, on the same sockets in the same run, the router program with the
kernel's own SO_REUSEPORT hash: the program is attached and detached in turn, a short
round each, and what counts is the median of the ratios of neighbouring rounds. The
packets are injected by BPF_PROG_TEST_RUN with live frames, on one core, and each round
is over when all of them are in the sockets' buffers (they are read between rounds).

Part two times `Generation.publish` and the opening of a generation for services of
1, 100 and 4,096 VIPs.

``python benchmarks/bench_router.py [--quick] [--output DIRECTORY]``, as root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sockway import Generation, Service, Vip
from sockway.lab.packets import CASES
from sockway.lab.report import machine
from sockway.lab.router_cost import BATCH, Flood, Rates, answers_go_nowhere, measure, pin
from sockway.lab.sandbox import Sandbox, sandbox

TARGETS = {
    "tcp (SYN)": 0.97,
    "none": 0.97,
    "tuple": 0.93,
    "quic, 1-RTT": 0.93,
    "quic, Initial": 0.93,
}


@dataclass(frozen=True)
class Publishing:
    """What part two found for one size of service; times in seconds."""

    vips: int
    first: float  # publish() of a new generation
    median: float  # publish() to and fro between two live generations
    worst: float
    prepare: float  # opening a generation: its sockets, arrays, map entries
    repeats: int


def _vips(count: int) -> list[Vip]:
    return [
        Vip.parse(f"udp://127.1.{number >> 8}.{number & 255}:7100?flow=none")
        for number in range(1, count + 1)
    ]


def _check_effect(generation: Generation, held: dict[Vip, socket.socket], vips: list[Vip]) -> None:
    """The next datagram to the first, a middle and the last VIP meets the new generation."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        for vip in (vips[0], vips[len(vips) // 2], vips[-1]):
            client.sendto(b"?", (str(vip.address), vip.port))
            try:
                held[vip].recv(16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                message = f"generation {generation.number} is published and {vip} does not know"
                raise SystemExit(message) from None


def publishing(count: int, box: Sandbox, repeats: int) -> Publishing:
    """Part two for a service of *count* VIPs."""
    vips = _vips(count)
    prepare: list[float] = []
    first: list[float] = []
    with (
        Service.open("bench", vips, root=box.environment["SOCKWAY_BPFFS"]) as service,
        contextlib.ExitStack() as stack,
    ):
        generations = []
        for _ in range(2):
            began = time.perf_counter()
            generation = stack.enter_context(service.generation(workers=1))
            prepare.append(time.perf_counter() - began)
            held = generation.sockets(0)
            began = time.perf_counter()
            generation.publish()
            first.append(time.perf_counter() - began)
            _check_effect(generation, held, vips)
            generations.append((generation, held))
        times = []
        for number in range(repeats):
            generation, held = generations[number % 2]
            began = time.perf_counter()
            generation.publish()
            times.append(time.perf_counter() - began)
            _check_effect(generation, held, vips)
        for generation, _ in generations:
            generation.close(force=True)
        service.remove()
    return Publishing(
        vips=count,
        first=first[-1],
        median=statistics.median(times),
        worst=max(times),
        prepare=prepare[-1],
        repeats=repeats,
    )


def table(rates: list[Rates]) -> Table:
    made = Table(title="Packets a second, one core, same sockets", title_justify="left")
    for column in ("flow mode", "router", "kernel's hash", "ratio", "quartiles", "program, ns"):
        made.add_column(column, justify="left" if column == "flow mode" else "right")
    for rate in rates:
        made.add_row(
            rate.case,
            f"{rate.router / 1e6:.3f} M",
            f"{rate.kernel / 1e6:.3f} M",
            f"{rate.ratio:.3f}",
            f"{rate.low:.3f} to {rate.high:.3f}",
            f"{rate.program:.0f}",
        )
    return made


def _publishing_table(results: list[Publishing]) -> Table:
    table = Table(title="Publishing, microseconds", title_justify="left")
    for column in ("VIPs", "a release's", "to and fro, median", "worst", "preparing, ms"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            f"{result.vips:,}",
            f"{result.first * 1e6:.0f}",
            f"{result.median * 1e6:.0f}",
            f"{result.worst * 1e6:.0f}",
            f"{result.prepare * 1e3:.1f}",
        )
    return table


def figures(
    name: str, rates: list[Rates], results: list[Publishing], seconds: float
) -> dict[str, Any]:
    systems: dict[str, dict[str, Any]] = {"sockway": {}, "reuseport": {}}
    for rate in rates:
        key = rate.case.replace(",", "").replace(" ", "_").replace("(", "").replace(")", "")
        count = rate.rounds
        for system, value in (("sockway", rate.router), ("reuseport", rate.kernel)):
            systems[system][f"{key}_rate"] = {"value": value, "unit": "packets/s", "n": count}
        systems["sockway"][f"{key}_ratio"] = {"value": rate.ratio, "unit": "1", "n": count}
        systems["sockway"][f"{key}_program"] = {"value": rate.program, "unit": "ns", "n": BATCH}
    for result in results:
        key = f"publish_{result.vips}_vips"
        systems["sockway"][key] = {"value": result.median, "unit": "s", "n": result.repeats}
        systems["sockway"][f"prepare_{result.vips}_vips"] = {
            "value": result.prepare,
            "unit": "s",
            "n": 1,
        }
    command = " ".join([f"python benchmarks/bench_{name}.py", *sys.argv[1:]])
    experiment = {"systems": systems, "command": command, "seconds": round(seconds, 1)}
    return {"experiments": {name: experiment}, "machine": machine()}


def main() -> None:
    """Measure, print tables, write JSON; status 1 if a ratio is below its target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    rounds, batches = (21, 4) if options.quick else (81, 8)
    console = Console()
    began = time.monotonic()
    pin()
    with sandbox() as box, answers_go_nowhere():
        flood = Flood()
        root = box.environment["SOCKWAY_BPFFS"]
        with console.status("measuring"):
            rates = [measure(case, flood, root, rounds, batches) for case in CASES]
            console.print(table(rates))
            results = [publishing(count, box, 201) for count in (1, 100, 4096)]
            console.print(_publishing_table(results))
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "router.json"
    path.write_text(
        json.dumps(figures("router", rates, results, time.monotonic() - began), indent=2) + "\n"
    )
    console.print(f"Written: {path}")
    missed = [rate.case for rate in rates if rate.ratio < TARGETS.get(rate.case, 0)]
    if missed:
        console.print(f"[red]below the target:[/] {', '.join(missed)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
