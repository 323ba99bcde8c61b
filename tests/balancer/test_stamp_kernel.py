"""Stamps where kernels do the unusual: SYN cookies, Fast Open, losses, full headers."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.balancer import middlebox as boxes
from tests.balancer.middlebox import ACK, SERVER, SERVER6, SYN, Middlebox, stripped
from tests.balancer.stamped import (
    ANY,
    ID,
    PORT,
    TOLD,
    WROTE,
    connected,
    listening,
    stamped,
    strip_syn_acks,
    talk,
    whole,
)

pytestmark = pytest.mark.root

MSG_FASTOPEN = 0x20000000
_SACK = 5


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


@pytest.mark.parametrize("host", [SERVER, SERVER6])
def test_syn_cookies(cgroup: Path, box: Middlebox, host: str) -> None:
    """The server keeps nothing of a SYN: its SYN-ACK has the ID all the same."""
    boxes.sysctl(box.server, "ipv4.tcp_syncookies", "2")
    with stamped(cgroup) as stamping, listening(box, host) as server:
        with connected(box, server) as ends:
            talk(*ends)
        whole(stamping, box)
        assert stamping.counters()["told"] == 1
    assert cookies(box) == (1, 1)


def test_syn_cookies_whose_option_is_lost(cgroup: Path, box: Middlebox) -> None:
    """The client asks, and the server, which knows nothing of the SYN-ACK, tells it again."""
    boxes.sysctl(box.server, "ipv4.tcp_syncookies", "2")
    box.alter = strip_syn_acks
    with stamped(cgroup) as stamping, listening(box) as server:
        with connected(box, server) as ends:
            talk(*ends)
        whole(stamping, box)
        counters = stamping.counters()
        assert counters["asked"] > 0
        assert counters["told_again"] > 0
        assert counters["learnt_late"] == 1
    assert cookies(box) == (1, 1)


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
    box.alter = strip_syn_acks
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


def cookies(box: Middlebox) -> tuple[int, int]:
    """How many the server sent, and how many came back."""
    text = box.server.run(lambda: Path("/proc/thread-self/net/netstat").read_text(encoding="ascii"))
    names, values = (line.split() for line in text.splitlines()[:2])
    found = dict(zip(names, values, strict=True))
    return int(found["SyncookiesSent"]), int(found["SyncookiesRecv"])
