"""What a SYN flood does to known flows: how many keep their backend, and what they cost meanwhile.

Known flows open (a SYN, and a later packet) while the pool is in transition; then the ring
changes, so that only memory can tell where they belong; then a flood of SYNs from other sources
comes, many times what the connection table holds. Asked is, of each known flow, whether its
next packet would go where the flow is. Systems: a table for every flow (`table`), and the slot
history in steady state and in transition, without and with a limit on new connections.

``python benchmarks/bench_flood.py [--quick] [--output DIRECTORY]``, as root.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sockway.lab.balancer_cost import SOURCE4, Harness, Kind, ipv4, on_wire, tcp
from sockway.lab.bare_balancer import Setup, load
from sockway.lab.report import machine
from sockway.lab.router_cost import pin

SYN, ACK = 0x02, 0x10
KNOWN = 20_000
BUCKETS = 1 << 14  # 131,072 flows
BACKENDS = 100
FLOOD = Kind("SYN", on_wire(ipv4(6, tcp(SYN, payload=b"x" * 58), source="172.16.0.0")), SOURCE4)
LIMIT = 10_000  # connections a second
SYSTEMS = {
    "table": ("MEMORY_TABLE", False, 0),
    "history, steady": ("MEMORY_HISTORY", False, 0),
    "history, in transition": ("MEMORY_HISTORY", True, 0),
    "history, in transition, limit": ("MEMORY_HISTORY", True, LIMIT),
}


def _frames(flags: int) -> list[bytes]:
    """One frame for each known flow, made by changing the source address of one."""
    frame = on_wire(ipv4(6, tcp(flags, payload=b"x" * 20)))
    return [frame[:26] + struct.pack("!I", (10 << 24) + n) + frame[30:] for n in range(KNOWN)]


def _owners(setup: Setup, frames: list[bytes]) -> list[int]:
    explanation = setup.object.map("explanation")
    found = []
    with setup.object.program("explain") as explain:
        for frame in frames:
            explain.test_run(frame)
            found.append(int(explanation[0].backend))
    return found


def _change(setup: Setup, *, moved: bool) -> None:
    """In steady state no slot moves; in transition each has another backend than before."""
    ring = setup.memory("rings", None, setup.ring_size)
    if moved:
        ring[:] = [(slot & 0xFFFF) % BACKENDS + 1 | (slot & 0xFFFF) << 16 for slot in ring]


def _rotate(setup: Setup) -> None:
    """Current backends change again, the oldest previous ones stay."""
    ring = setup.memory("rings", None, setup.ring_size)
    ring[:] = [(slot & 0xFFFF) % BACKENDS + 1 | slot & 0xFFFF0000 for slot in ring]


def flood(harness: Harness, name: str, times: int) -> tuple[float, float]:
    """Share of known flows that keep their backend, and ns a packet of the flood."""
    memory, moved, limit = SYSTEMS[name]
    setup = load(memory=memory, backends=BACKENDS, buckets=BUCKETS)
    if limit:
        limits = setup.memory("limits", "limit", 4)
        for entry in limits:
            entry.interval, entry.burst = 10**9 // limit, 10**9 * KNOWN * 2 // limit
    _change(setup, moved=moved)
    with setup.object.program("balancer") as program:
        for flags in (SYN, ACK):
            for frame in _frames(flags):
                program.test_run(frame)
    acknowledgements = _frames(ACK)
    owners = _owners(setup, acknowledgements)
    if memory == "MEMORY_TABLE" or moved:
        _rotate(setup)
    if limit:
        for entry in limits:
            entry.burst = 10**9 // 10
    packet = harness.aim(setup, FLOOD, 1 << 24)
    spent = harness.time(packet, 1, times * BUCKETS * 8)
    after = _owners(setup, acknowledgements)
    kept = sum(a == b for a, b in zip(owners, after, strict=True)) / KNOWN
    return kept, spent - harness.time(packet, 0, 1_000_000)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a shorter flood")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    times = 10 if options.quick else 50
    console = Console()
    began = time.monotonic()
    pin()
    table = Table(title=f"{KNOWN:,} known flows in a flood of SYNs", title_justify="left")
    for column in ("system", "SYNs", "flows that keep their backend", "ns a SYN"):
        table.add_column(column, justify="left" if column == "system" else "right")
    systems = {}
    with console.status("flooding"):
        harness = Harness()
        for name in SYSTEMS:
            kept, spent = flood(harness, name, times)
            count = times * BUCKETS * 8
            systems[name] = {
                "kept": {"value": kept, "unit": "1", "n": KNOWN},
                "cost": {"value": round(spent, 1), "unit": "ns", "n": count},
            }
            table.add_row(name, f"{count:,}", f"{kept:.2%}", f"{spent:.0f}")
    console.print(table)
    command = " ".join(["python benchmarks/bench_flood.py", *sys.argv[1:]])
    experiment = {
        "systems": systems, "command": command, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "flood.json"
    found = {"experiments": {"flood": experiment}, "machine": machine()}
    path.write_text(json.dumps(found, indent=2) + "\n")
    console.print(f"Written: {path}")


if __name__ == "__main__":
    main()
