"""What the balancer costs: ns a packet, by kind of packet, number of flows and way of memory.

A wrapper program (`bpf/repeat.bpf.c`) restores the packet before each repetition and
tail-calls the balancer, or an empty program; all figures are net of the empty one, which is
measured before and after each in the same run. Three systems: the balancer as it is
(`history`), the same with half of its slots in transition (`transition`), and the same
program with a connection table for every packet (`table`), as other balancers have it.

``python benchmarks/bench_balancer.py [--quick] [--output DIRECTORY]``, as root.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sockway.lab.balancer_cost import (
    KINDS,
    QUIC_IDS,
    Harness,
    carrying,
    measure,
    transition,
)
from sockway.lab.bare_balancer import Setup, load
from sockway.lab.report import machine
from sockway.lab.router_cost import pin

SIZES = ((1, 100), (1000, 100), (1, 1000), (1000, 10_000))


def grown(
    harness: Harness, rounds: int, count: int, systems: dict[str, dict[str, dict[str, object]]]
) -> Table:
    """A known TCP packet, a million flows, by the size of the configuration."""
    table = Table(title="TCP, 1,048,576 flows, by VIPs and backends", title_justify="left")
    for column in ("VIPs", "backends", "ns a packet", "memory of the maps, MB"):
        table.add_column(column, justify="right")
    for vips, backends in SIZES:
        setup = load(vips=vips, backends=backends)
        median, spread = measure(harness, setup, KINDS[0], 1 << 20, rounds, count)
        memory = memory_of(setup) / 1e6
        key = f"TCP_{vips}_VIPs_{backends}_backends"
        systems.setdefault("history", {})[key] = {"value": median, "unit": "ns", "n": rounds}
        table.add_row(
            f"{vips:,}", f"{backends:,}", f"{median:.0f} ± {spread / 2:.0f}", f"{memory:.1f}"
        )
    return table


def stamped(
    harness: Harness, rounds: int, count: int, systems: dict[str, dict[str, dict[str, object]]]
) -> Table:
    """Packets by how they carry their server's ID, of a million flows."""
    table = Table(title="1,048,576 flows, by what they carry", title_justify="left")
    table.add_column("packet")
    table.add_column("ns a packet", justify="right")
    setup = load(quic_ids=list(QUIC_IDS.values()))
    for kind in carrying():
        median, spread = measure(harness, setup, kind, 1 << 20, rounds, count)
        key = kind.name.replace(",", "").replace(" ", "_")
        systems.setdefault("stamps", {})[key] = {"value": median, "unit": "ns", "n": rounds}
        table.add_row(kind.name, f"{median:.0f} ± {spread / 2:.0f}")
    return table


def memory_of(setup: Setup) -> int:
    """Octets that the kernel accounts to the balancer's maps."""
    total = 0
    for name in setup.object.maps:
        with setup.object.map(name) as held:
            words = Path(f"/proc/self/fdinfo/{held.fd}").read_text()
            total += int(words.split("memlock:")[1].split()[0])
    return total


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    rounds, count = (7, 200_000) if options.quick else (15, 1_000_000)
    console = Console()
    began = time.monotonic()
    pin()
    systems: dict[str, dict[str, dict[str, object]]] = {}
    table = Table(title="ns a packet, net of an empty program", title_justify="left")
    for column in ("packet", "flows", "history", "in transition", "table"):
        table.add_column(column, justify="left" if column == "packet" else "right")
    with console.status("measuring"):
        harness = Harness()
        setups = {"history": load(), "transition": load(), "table": load(memory="MEMORY_TABLE")}
        transition(setups["transition"])
        for kind in KINDS:
            for flows in (1, 1 << 20):
                row = []
                for name, setup in setups.items():
                    median, spread = measure(harness, setup, kind, flows, rounds, count)
                    key = f"{kind.name} {flows}".replace(" ", "_").replace("'", "")
                    systems.setdefault(name, {})[key] = {
                        "value": round(median, 1), "unit": "ns", "n": rounds,
                        "spread": round(spread, 1),
                    }  # fmt: skip
                    row.append(f"{median:.0f} ± {spread / 2:.0f}")
                table.add_row(kind.name, f"{flows:,}", *row)
        growth = grown(harness, rounds, count, systems)
        carried = stamped(harness, rounds, count, systems)
    for each in (table, growth, carried):
        console.print(each)
    command = " ".join(["python benchmarks/bench_balancer.py", *sys.argv[1:]])
    experiment = {
        "systems": systems, "command": command, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "balancer.json"
    found = {"experiments": {"balancer": experiment}, "machine": machine()}
    path.write_text(json.dumps(found, indent=2) + "\n")
    console.print(f"Written: {path}")


if __name__ == "__main__":
    main()
