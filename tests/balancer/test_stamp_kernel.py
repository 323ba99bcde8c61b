"""Stamps where kernels do the unusual: SYN cookies, Fast Open, losses, full headers."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import uuid
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap, wrpcap

from sockway.balancer.stamping import Stamping, StampingSpec
from sockway.kernel import cgroup
from tests.balancer import middlebox as boxes
from tests.balancer.middlebox import ACK, FIN, SERVER, SERVER6, SYN, Middlebox, middlebox, stripped

pytestmark = pytest.mark.root

PORT = 7777
ID = 0xABCDEF
TOLD, WROTE = 0xB6, 0xB7
PEERS = [ip_network("10.7.0.0/24"), ip_network("fd07::/64")]
ANY = {TOLD, WROTE}
MSG_FASTOPEN = 0x20000000
_SACK = 5


@pytest.fixture(name="cgroup")
def own_cgroup() -> Iterator[Path]:
    """A cgroup of the test's own, with this process in it."""
    with cgroup.temporary(f"sockway-{uuid.uuid4().hex[:8]}") as place:
        yield place


@pytest.fixture
def box() -> Iterator[Middlebox]:
    """The two hosts."""
    with middlebox() as made:
        yield made


@contextlib.contextmanager
def stamped(cgroup: Path, **changed: Any) -> Iterator[Stamping]:
    """Both hosts' sockets are stamped."""
    fields: dict[str, Any] = {
        "name": cgroup.name, "cgroup": cgroup, "server_id": ID, "server_ports": [PORT],
        "client_ports": [PORT], "peers": PEERS, "server_kind": TOLD, "client_kind": WROTE,
    }  # fmt: skip
    made = Stamping.up(StampingSpec(**(fields | changed)))
    try:
        yield made
    finally:
        made.down()


@contextlib.contextmanager
def listening(box: Middlebox, host: str = SERVER) -> Iterator[socket.socket]:
    """A server."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def opening() -> socket.socket:
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        sock.bind((host, PORT))
        sock.listen()
        sock.settimeout(10)
        return sock

    with box.server.run(opening) as server:
        yield server


@contextlib.contextmanager
def connected(
    box: Middlebox, server: socket.socket
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: the client's end, the server's."""
    target = server.getsockname()[:2]
    with box.client.run(lambda: socket.create_connection(target, timeout=10)) as client:
        accepted, _ = server.accept()
        accepted.settimeout(10)
        with accepted:
            yield client, accepted


def talk(client: socket.socket, accepted: socket.socket, times: int = 5) -> None:
    """Questions and answers."""
    for _ in range(times):
        client.sendall(b"question")
        assert accepted.recv(100) == b"question"
        accepted.sendall(b"answer")
        assert client.recv(100) == b"answer"


def whole(stamping: Stamping, box: Middlebox) -> None:
    """The ID was told, learnt and echoed, and is on all that the client sent from then on."""
    counters = stamping.counters()
    assert counters["learnt"] + counters["learnt_late"] == 1
    assert counters["echoed"] == 1
    sent = []
    for each in box.of_client():
        if not each.flags & SYN:
            sent.append(each.values(WROTE))
        if each.flags & FIN:
            break  # what acknowledges the other side's end is no socket any more
    first = next(at for at, values in enumerate(sent) if values == [ID])
    assert all(values == [ID] for values in sent[first:])


@pytest.mark.parametrize("host", [SERVER, SERVER6])
def test_the_usual(cgroup: Path, box: Middlebox, host: str) -> None:
    """On the SYN-ACK, and on each of the client's after it; nowhere else."""
    with stamped(cgroup) as stamping, listening(box, host) as server:
        with connected(box, server) as ends:
            talk(*ends)
        whole(stamping, box)
        assert stamping.counters()["told"] == 1
    for each in box.of_server():
        syn_ack = each.flags & (SYN | ACK) == SYN | ACK
        assert each.values(TOLD, WROTE) == ([ID] if syn_ack else [])
    assert all(not each.values(TOLD, WROTE) for each in box.of_client() if each.flags & SYN)


def test_hosts_that_are_no_peers(cgroup: Path, box: Middlebox) -> None:
    """Their headers are as ever: nothing is written, and no room is kept for it."""

    def sizes() -> set[tuple[int, int]]:
        box.seen.clear()
        with listening(box) as server, connected(box, server) as ends:
            talk(*ends)
            return {(each.flags & (SYN | ACK), each.full) for each in box.seen}

    plain = sizes()
    with stamped(cgroup, peers=[ip_network("10.8.0.0/16")]):
        assert sizes() == plain
    with stamped(cgroup):
        found = sizes()
    assert found != plain
    assert {(flags, full) for flags, full in found if flags == SYN} <= plain  # nothing to say yet


@pytest.mark.parametrize("shared", [False, True])
def test_a_capture_that_others_read(
    cgroup: Path, box: Middlebox, tmp_path: Path, *, shared: bool
) -> None:
    """Scapy finds the option on the packets that should have it, well-formed, and on no others."""
    kinds: dict[str, Any] = {}
    if shared:
        kinds = {
            "server_kind": 253, "server_experiment": 0x1234,
            "client_kind": 254, "client_experiment": 0x4321,
        }  # fmt: skip
    with stamped(cgroup, **kinds), listening(box) as server, connected(box, server) as ends:
        talk(*ends)
        frames = list(box.frames)
    file = tmp_path / "stamps.pcap"
    wrpcap(str(file), [Ether(frame) for frame in frames])
    told, wrote = (
        [(253, b"\x12\x34" + ID.to_bytes(4, "big")), (254, b"\x43\x21" + ID.to_bytes(4, "big"))]
        if shared
        else [(TOLD, ID.to_bytes(4, "big")), (WROTE, ID.to_bytes(4, "big"))]
    )
    packets = [packet[TCP] for packet in rdpcap(str(file))]
    assert len(packets) > 10
    for tcp in packets:
        flags, found = str(tcp.flags), [o for o in tcp.options if isinstance(o[0], int)]
        if tcp.dport == PORT:
            assert found == ([] if "S" in flags else [wrote])
        else:
            assert found == ([told] if flags == "SA" else [])


@pytest.mark.parametrize("host", [SERVER, SERVER6])
def test_syn_cookies(cgroup: Path, box: Middlebox, host: str) -> None:
    """The server keeps nothing of a SYN: its SYN-ACK has the ID all the same."""
    boxes.sysctl(box.server, "ipv4.tcp_syncookies", "2")
    with stamped(cgroup) as stamping, listening(box, host) as server:
        with connected(box, server) as ends:
            talk(*ends)
        whole(stamping, box)
        assert stamping.counters()["told"] == 1


def test_syn_cookies_whose_option_is_lost(cgroup: Path, box: Middlebox) -> None:
    """The client asks, and the server, which knows nothing of the SYN-ACK, tells it again."""
    boxes.sysctl(box.server, "ipv4.tcp_syncookies", "2")
    box.alter = _strip_syn_acks
    with stamped(cgroup) as stamping, listening(box) as server:
        with connected(box, server) as ends:
            talk(*ends)
        whole(stamping, box)
        counters = stamping.counters()
        assert counters["asked"] > 0
        assert counters["told_again"] > 0
        assert counters["learnt_late"] == 1


def test_a_syn_ack_that_is_lost(cgroup: Path, box: Middlebox) -> None:
    """Each retransmission has the ID."""
    drops = iter([False, False])
    box.alter = lambda segment, _: (
        next(drops, True) if not segment.to_server and segment.flags & SYN else True
    )
    with stamped(cgroup) as stamping, listening(box) as server:
        with connected(box, server) as ends:
            talk(*ends)
        whole(stamping, box)
    told = [each.values(TOLD) for each in box.of_server() if each.flags & SYN]
    assert len(told) >= 3
    assert all(values == [ID] for values in told)


def test_the_handshakes_last_packet_is_lost(cgroup: Path, box: Middlebox) -> None:
    """The echo comes with the first data."""
    drops = iter([False])
    box.alter = lambda segment, _: (
        next(drops, True) if segment.to_server and not segment.flags & SYN else True
    )
    with stamped(cgroup) as stamping, listening(box) as server:
        target = server.getsockname()
        with box.client.run(lambda: socket.create_connection(target, timeout=10)) as client:
            client.sendall(b"question")
            accepted, _ = server.accept()
            with accepted:
                assert accepted.recv(100) == b"question"
                talk(client, accepted)
        whole(stamping, box)


def test_a_box_that_strips_one_syn_ack(cgroup: Path, box: Middlebox) -> None:
    """The client asks with 0, the server tells it with its next packet."""
    box.alter = _strip_syn_acks
    with stamped(cgroup) as stamping, listening(box) as server:
        with connected(box, server) as ends:
            talk(*ends)
        whole(stamping, box)
        counters = stamping.counters()
        assert counters["asked"] > 0
        assert counters["told_again"] > 0
        assert counters["silent"] == 0


@pytest.mark.parametrize("kinds", [{TOLD}, {WROTE}, ANY])
def test_a_box_that_strips_all(cgroup: Path, box: Middlebox, kinds: set[int]) -> None:
    """The connection lives; whoever gets no answer gives up after some packets."""

    def strip(segment: boxes.Segment, frame: bytearray) -> bool:
        stripped(kinds, segment, frame)
        return True

    box.alter = strip
    with stamped(cgroup) as stamping, listening(box) as server, connected(box, server) as ends:
        talk(*ends, times=80)
        counters = stamping.counters()
        assert counters["echoed"] == 0
        assert counters["silent"] == (1 if kinds == {WROTE} else 2)
        box.seen.clear()
        talk(*ends, times=5)
        assert not any(each.values(TOLD) for each in box.of_server())
        # Who was told goes on: it can't know that nobody sees it.
        told = kinds == {WROTE}
        assert all(bool(each.values(WROTE)) is told for each in box.of_client())


def test_fast_open(cgroup: Path, box: Middlebox) -> None:
    """Data on the SYN, which has no ID yet; the SYN-ACK tells it, before any process accepts."""
    for host in (box.client, box.server):
        boxes.sysctl(host, "ipv4.tcp_fastopen", "3")

    def opening() -> socket.socket:
        sock = socket.socket()
        sock.sendto(b"question", MSG_FASTOPEN, (SERVER, PORT))
        sock.settimeout(10)
        return sock

    with stamped(cgroup) as stamping, listening(box) as server:
        for number in range(1, 3):
            box.seen.clear()
            with box.client.run(opening) as client:
                accepted, _ = server.accept()
                with accepted:
                    assert accepted.recv(100) == b"question"
                    talk(client, accepted)
            assert stamping.counters()["echoed"] == stamping.counters()["learnt"] == number
        syns = [each for each in box.of_client() if each.flags & SYN]
        assert [each.payload for each in syns] == [len(b"question")]
        assert not syns[0].values(TOLD, WROTE)
        sent = [each for each in box.of_client() if not each.flags & SYN]
        assert sent
        assert all(each.values(WROTE) == [ID] for each in sent)


@pytest.mark.parametrize("stamps", [True, False])
def test_segments_leave_room_for_the_option(cgroup: Path, box: Middlebox, *, stamps: bool) -> None:
    """The kernel counts it: full segments have eight octets less, and none is over the MTU."""
    with (
        stamped(cgroup, client_ports=[PORT] if stamps else [1]),
        listening(box) as server,
        connected(box, server) as (client, accepted),
    ):
        data = bytes(200_000)
        client.sendall(data[:1])
        accepted.recv(1)
        box.seen.clear()
        client.setblocking(False)
        sent = received = 0
        while received < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += client.send(data[sent:])
            received += len(accepted.recv(65_536))
    full = 1500 - 40 - 12 - (8 if stamps else 0)
    sizes = [each for each in box.of_client() if each.payload]
    assert max(each.octets for each in sizes) == 1500
    assert max(each.payload for each in sizes) == full
    assert all(bool(each.values(WROTE)) is stamps for each in sizes)


@pytest.mark.parametrize("timestamps", [True, False])
def test_a_header_that_is_full(cgroup: Path, box: Middlebox, *, timestamps: bool) -> None:
    """SACK leaves no room: three blocks beside timestamps, four without.

    Such an acknowledgement has no ID (backends know what to do with it); the connection goes on,
    and the next packet has it again. Where less than all is full, the kernel asks the program,
    which counts it.
    """
    lost = itertools.count()

    def alter(segment: boxes.Segment, _frame: bytearray) -> bool:
        # Every other one of the first full segments: many holes at once.
        if not segment.to_server and segment.payload > 1000:
            number = next(lost)
            return number > 12 or number % 2 == 0
        return True

    for host in (box.client, box.server):
        boxes.sysctl(host, "ipv4.tcp_timestamps", "1" if timestamps else "0")
    with (
        stamped(cgroup) as stamping,
        listening(box) as server,
        connected(box, server) as (client, accepted),
    ):
        talk(client, accepted)
        box.alter = alter
        data = bytes(60_000)
        client.settimeout(10)
        worker = threading.Thread(target=accepted.sendall, args=(data,))
        worker.start()
        received = 0
        while received < len(data):
            received += len(client.recv(65_536))
        worker.join()
        blocks = 3 if timestamps else 4
        sent = [each for each in box.of_client() if not each.flags & SYN]
        crowded = [
            e for e in sent if any(k == _SACK and len(v) == 8 * blocks for k, v in e.options)
        ]
        assert crowded
        assert all(not each.values(WROTE) for each in crowded)
        assert all(each.values(WROTE) == [ID] for each in sent if each not in crowded)
        assert (stamping.counters()["no_room"] > 0) is not timestamps
        box.seen.clear()
        talk(client, accepted)
        assert all(each.values(WROTE) == [ID] for each in box.of_client())


def _strip_syn_acks(segment: boxes.Segment, frame: bytearray) -> bool:
    if not segment.to_server and segment.flags & SYN:
        stripped({TOLD}, segment, frame)
    return True
