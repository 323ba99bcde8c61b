"""What the socket router costs: the program against the kernel's own hash, on the same sockets.

The program is attached and detached in turn, a short round each, and what counts is the median
of the ratios of neighbouring rounds. Packets are injected by BPF_PROG_TEST_RUN with live frames, on
one core, and each round is over when all of them are in the sockets' buffers (they are read
between rounds).
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sockway.errors import StateError
from sockway.kernel import BpfObject, Program, enable_run_stats
from sockway.kernel.layout import ObjectLayout
from sockway.lab.packets import ID_LENGTH, Case, frame
from sockway.sockets.service import Service
from sockway.wire.addresses import FlowMode, Vip

SO_DETACH_REUSEPORT_BPF: Final = 68
WORKERS: Final = 4
BATCH: Final = 4096
"""Packets until the sockets are read: they fit into the buffers."""
BUFFER: Final = 256 << 20
VARIANTS: Final = 4096
_STATISTICS: Final = 5
"""Batches that the program is timed in, at the least."""


@dataclass(frozen=True)
class Rates:
    """What was found for one flow mode."""

    case: str
    router: float
    """Packets a second through the program, median."""
    kernel: float
    """The same by the kernel's hash."""
    ratio: float
    """Median of the ratios of neighbouring rounds."""
    low: float
    """The quartiles of those."""
    high: float
    program: float
    """Ns a packet, by BPF run statistics."""
    rounds: int
    programs: list[float] = field(default_factory=list)
    """Ns a packet in each batch of those."""


class Flood:
    """The source of packets."""

    def __init__(self) -> None:
        """Load it."""
        self.object = BpfObject.open(ObjectLayout("flood").source, name="flood")
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
            raise StateError(f"{case.name}: {got} of {BATCH} datagrams arrived")
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
    """The program against the kernel's hash on the same sockets.

    Raises:
        StateError: a datagram was lost.

    """
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
    programs = []
    with enable_run_stats():
        for _ in range(max(batches, _STATISTICS)):
            before = program.run_stats()
            _round(flood, case, sockets, 1)
            after = program.run_stats()
            programs.append((after.nanoseconds - before.nanoseconds) / (after.count - before.count))
    ratios = [routed / plain for routed, plain in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Rates(
        case=name,
        router=statistics.median(routed for routed, _ in pairs),
        kernel=statistics.median(plain for _, plain in pairs),
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        program=statistics.median(programs),
        rounds=rounds,
        programs=programs,
    )


def measure(case: Case, flood: Flood, root: str, rounds: int, batches: int) -> Rates:
    """Measure one flow mode; `root` is a bpffs.

    Raises:
        StateError: a datagram was lost.

    """
    vip = Vip.parse(case.url)
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


@contextlib.contextmanager
def answers_go_nowhere() -> Iterator[None]:
    """A route for the answers to the injected packets: out by a veth whose peer nobody reads."""
    # Here, for it takes longer to import than all else together.
    from pyroute2 import IPRoute  # noqa: PLC0415

    # Each SYN is answered statelessly, so that all of them cost the same.
    Path("/proc/sys/net/ipv4/tcp_syncookies").write_text("2", encoding="ascii")
    for name in ("all", "lo"):  # the packets come in by lo and are answered by another
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0", encoding="ascii")
    with IPRoute() as route:
        route.link("add", ifname="flood0", kind="veth", peer="flood1")
        out, peer = (route.link_lookup(ifname=name)[0] for name in ("flood0", "flood1"))
        route.addr("add", index=out, address="198.51.100.1", prefixlen=24)
        for index in (out, peer):
            route.link("set", index=index, state="up")
        route.neigh("add", dst="198.51.100.7", lladdr="02:00:00:00:00:07", ifindex=out, state=128)
        yield


def pin() -> None:
    """Stay on one CPU: the last that this process may use."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


__all__ = ["BATCH", "WORKERS", "Flood", "Rates", "answers_go_nowhere", "compare", "measure", "pin"]
