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
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from balancer_setup import Setup, load
from rich.console import Console
from rich.table import Table
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from hatch_build import compile_object  # noqa: E402
from sockway.kernel import BpfObject  # noqa: E402
from sockway.lab.report import machine  # noqa: E402

LINK = Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:09")
V4 = LINK / IP(src="10.9.0.0", dst="192.0.2.1", ttl=60)
V6 = LINK / IPv6(src="2001:db8:9::", dst="2001:db8::1", hlim=60)
SOURCE4, SOURCE6 = 26, 34  # where a source address (of IPv6: its end) is in the frame
PAYLOAD = b"x" * 58


@dataclass(frozen=True)
class Kind:
    """A kind of packet."""

    name: str
    packet: Packet
    varied: int
    verdict: int = 3  # XDP_TX


QUOTED = IP(src="192.0.2.1", dst="10.9.0.0") / TCP(sport=443, dport=40000)
KINDS = (
    Kind("TCP", V4 / TCP(sport=40000, dport=443, flags="A") / PAYLOAD, SOURCE4),
    Kind("SYN", V4 / TCP(sport=40000, dport=443, flags="S") / PAYLOAD, SOURCE4),
    Kind("UDP", V4 / UDP(sport=40000, dport=443) / PAYLOAD, SOURCE4),
    Kind(
        "no VIP's",
        LINK / IP(src="10.9.0.0", dst="192.0.2.9") / TCP(dport=443) / PAYLOAD,
        SOURCE4,
        2,
    ),
    Kind("TCP over IPv6", V6 / TCP(sport=40000, dport=443, flags="A") / PAYLOAD, SOURCE6),
    Kind("ICMP error", V4 / ICMP(type=3, code=1) / QUOTED / PAYLOAD, 58),
    Kind("echo", V4 / ICMP(type=8) / PAYLOAD, SOURCE4),
)


class Harness:
    """The wrapper, and what it calls."""

    def __init__(self, directory: Path) -> None:
        """Compile and load it."""
        target = directory / "repeat.bpf.o"
        compile_object(HERE / "bpf" / "repeat.bpf.c", target)
        self.object = BpfObject.open(target)
        self.object.load()
        self.tasks = self.object.map("tasks")
        self.task = self.tasks.mmap(self.object.types.struct("task"))
        self.programs = self.object.map("programs")
        self.empty, self.repeat = self.object.program("empty"), self.object.program("repeat")
        self.programs[0] = self.empty.fd

    def aim(self, setup: Setup, kind: Kind, flows: int) -> bytes:
        """Set up the packets; the frame for the run."""
        frame = bytes(kind.packet)
        self.task.length, self.task.varied, self.task.flows = len(frame), kind.varied, flows - 1
        words = self.object.types.struct("frame").from_buffer_copy(frame[:96])
        self.task.frame = words
        self.measured = setup.object.program("balancer")
        self.programs[1] = self.measured.fd
        with setup.object.program("explain") as explain:
            verdict = explain.test_run(frame).retval
        if verdict != kind.verdict:
            message = f"{kind.name}: verdict {verdict}, not {kind.verdict}"
            raise SystemExit(message)
        return frame

    def time(self, frame: bytes, program: int, count: int) -> float:
        """Mean ns of a repetition."""
        self.task.program = program
        return float(self.repeat.test_run(frame, repeat=count).duration)


def measure(  # noqa: PLR0917
    harness: Harness, setup: Setup, kind: Kind, flows: int, rounds: int, count: int
) -> tuple[float, float]:
    """Median and interquartile range of ns a packet, net of the empty program."""
    frame = harness.aim(setup, kind, flows)
    harness.time(frame, 1, max(count, min(flows, 1 << 20)))  # so that tables are filled
    found = []
    for _ in range(rounds):
        before = harness.time(frame, 0, count)
        full = harness.time(frame, 1, count)
        found.append(full - (before + harness.time(frame, 0, count)) / 2)
    low, _, high = statistics.quantiles(found, n=4)
    return statistics.median(found), high - low


def transition(setup: Setup) -> None:
    """Every slot has a previous backend."""
    ring = setup.memory("rings", None, setup.ring_size)
    ring[:] = [value | (value % 100 + 1) << 16 for value in ring]


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
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    systems: dict[str, dict[str, dict[str, object]]] = {}
    table = Table(title="ns a packet, net of an empty program", title_justify="left")
    for column in ("packet", "flows", "history", "in transition", "table"):
        table.add_column(column, justify="left" if column == "packet" else "right")
    with tempfile.TemporaryDirectory() as directory, console.status("measuring"):
        harness = Harness(Path(directory))
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
    console.print(table)
    console.print(growth)
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
