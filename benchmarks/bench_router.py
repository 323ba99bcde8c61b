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
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from rich.console import Console
from rich.table import Table

from sockway import Generation, Service, Vip
from sockway.kernel import BpfObject, Program, enable_run_stats
from sockway.lab.report import machine
from sockway.lab.sandbox import Sandbox, sandbox
from sockway.wire.addresses import FlowMode

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

from packets import CASES, ID_LENGTH, Case, frame  # noqa: E402

from hatch_build import compile_object  # noqa: E402

SO_DETACH_REUSEPORT_BPF = 68
WORKERS = 4
BATCH = 4096  # packets until the sockets are read: they fit into the buffers
BUFFER = 256 << 20
VARIANTS = 4096
TARGETS = {
    "tcp (SYN)": 0.97,
    "none": 0.97,
    "tuple": 0.93,
    "quic, 1-RTT": 0.93,
    "quic, Initial": 0.93,
}


@dataclass(frozen=True)
class Rates:
    """What part one found for one flow mode."""

    case: str
    router: float  # packets a second through the program, median
    kernel: float  # the same by the kernel's hash
    ratio: float  # median of the ratios of neighbouring rounds
    low: float  # the quartiles of those
    high: float
    program: float  # ns a packet, by BPF run statistics
    rounds: int


class Flood:
    """The source of packets."""

    def __init__(self, directory: Path) -> None:
        """Compile and load it."""
        target = directory / "flood.bpf.o"
        compile_object(HERE / "bpf" / "flood.bpf.c", target)
        self.object = BpfObject.open(target)
        self.object.load()
        self.program = self.object.program("flood")

    def prepare(self, packets: list[bytes]) -> None:
        """Write the packets that are sent in turn."""
        variants = self.object.map("variants")
        kind = self.object.types.struct("variant")
        keys = list(range(len(packets)))
        variants.update_batch(keys, [kind.from_buffer_copy(packet) for packet in packets])

    def send(self, head: bytes, count: int) -> float:
        """Send *count* packets; ns that it took, by the kernel's clock of the run itself.

        The call takes some 20 ms more than that: the run's pages are made and freed.
        """
        return count * self.program.test_run(head, repeat=count, live_frames=True).duration


def empty(sockets: list[socket.socket]) -> int:
    """Read all that waits in the UDP sockets; how many datagrams that were."""
    count = 0
    scratch = bytearray(16)
    for sock in sockets:
        if sock.type != socket.SOCK_DGRAM:
            continue
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.recv_into(scratch)
                count += 1
    return count


def _round(flood: Flood, case: Case, sockets: list[socket.socket], batches: int) -> float:
    """Packets a second of one round; fails if any of them was lost."""
    head = frame(case.protocol)
    spent = 0.0
    for _ in range(batches):
        spent += flood.send(head, BATCH)
        got = empty(sockets)
        if case.protocol == socket.IPPROTO_UDP and got != BATCH:
            message = f"{case.name}: {got} of {BATCH} datagrams arrived"
            raise SystemExit(message)
    return batches * BATCH / spent * 1e9


def _grow(sock: socket.socket) -> None:
    sock.setblocking(False)
    so_rcvbufforce = 33
    sock.setsockopt(socket.SOL_SOCKET, so_rcvbufforce, BUFFER)


def _detach(sock: socket.socket) -> None:
    """Leave the socket's group to the kernel's hash, if it is not."""
    with contextlib.suppress(FileNotFoundError):
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)


def compare(  # noqa: PLR0917
    name: str,
    case: Case,
    flood: Flood,
    program: Program,
    sockets: list[socket.socket],
    rounds: int,
    batches: int,
) -> Rates:
    """The program against the kernel's hash on the same sockets."""
    for sock in sockets:
        _grow(sock)
    pairs: list[tuple[float, float]] = []
    _round(flood, case, sockets, 1)
    for number in range(rounds):
        first: dict[bool, float] = {}
        for routed in (True, False) if number % 2 else (False, True):
            if routed:
                program.attach_reuseport(sockets[0])
            else:
                _detach(sockets[0])
            first[routed] = _round(flood, case, sockets, batches)
        pairs.append((first[True], first[False]))
    program.attach_reuseport(sockets[0])
    with enable_run_stats():
        before = program.run_stats()
        _round(flood, case, sockets, batches)
        after = program.run_stats()
    ratios = [routed / plain for routed, plain in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Rates(
        case=name,
        router=statistics.median(routed for routed, _ in pairs),
        kernel=statistics.median(plain for _, plain in pairs),
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        program=(after.nanoseconds - before.nanoseconds) / (after.count - before.count),
        rounds=rounds,
    )


def measure(case: Case, flood: Flood, box: Sandbox, rounds: int, batches: int) -> Rates:
    """Part one for one flow mode."""
    vip = Vip.parse(case.url)
    root = box.environment["SOCKWAY_BPFFS"]
    with (
        Service.open("bench", [vip], root=root) as service,
        service.generation(workers=WORKERS) as generation,
    ):
        sockets = [generation.sockets(worker)[vip] for worker in range(WORKERS)]
        generation.publish()
        ids = generation.ids(ID_LENGTH)
        flood.prepare(list(case.packets(vip.port, ids, VARIANTS)))
        program = service.state.program(FlowMode(vip.flow))
        rates = compare(case.name, case, flood, program, sockets, rounds, batches)
        generation.close(force=True)
        service.remove()
    return rates


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


@contextlib.contextmanager
def answers_go_nowhere() -> Iterator[None]:
    """A route for the answers to the injected packets: out by a veth whose peer nobody reads."""
    # Each SYN is answered statelessly, so that all of them cost the same.
    Path("/proc/sys/net/ipv4/tcp_syncookies").write_text("2")
    for name in ("all", "lo"):  # the packets come in by lo and are answered by another
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
    with IPRoute() as route:
        route.link("add", ifname="flood0", kind="veth", peer="flood1")
        out, peer = (route.link_lookup(ifname=name)[0] for name in ("flood0", "flood1"))
        route.addr("add", index=out, address="198.51.100.1", prefixlen=24)
        for index in (out, peer):
            route.link("set", index=index, state="up")
        route.neigh("add", dst="198.51.100.7", lladdr="02:00:00:00:00:07", ifindex=out, state=128)
        yield


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
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with sandbox() as box, answers_go_nowhere(), tempfile.TemporaryDirectory() as directory:
        flood = Flood(Path(directory))
        with console.status("measuring"):
            rates = [measure(case, flood, box, rounds, batches) for case in CASES]
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
