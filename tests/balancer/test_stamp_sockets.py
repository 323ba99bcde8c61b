"""Which sockets are stamped, and as which side: ports, ECN, sockets used again, other programs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from ipaddress import ip_network
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from sockway.balancer.stamping import Stamping
from sockway.kernel.features import ways
from tests.balancer import middlebox as boxes
from tests.balancer.middlebox import ACK, CLIENT, RST, SERVER, SYN, Middlebox
from tests.balancer.stamped import (
    ANY,
    ID,
    PORT,
    TOLD,
    WROTE,
    connected,
    listening,
    settled,
    spec,
    stamped,
    strip_syn_acks,
    talk,
    whole,
)

pytestmark = pytest.mark.root

STRANGER = "10.7.0.3"
"""Another address of the server's host, which is no peer."""
ONLY_HOSTS = [ip_network(f"{CLIENT}/32"), ip_network(f"{SERVER}/32")]
_ECE, _CWR = 0x40, 0x80


def test_syns_that_offer_ecn(cgroup: Path, box: Middlebox) -> None:
    """They have other flags than SYN, and no option all the same."""
    boxes.sysctl(box.client, "ipv4.tcp_ecn", "1")
    with stamped(cgroup) as stamping, listening(box) as server:
        with connected(box, server) as ends:
            talk(*ends)
        whole(stamping, box)
        assert stamping.counters()["asked"] == 0
    syns = [each for each in box.of_client() if each.flags & SYN]
    assert syns[0].flags & (_ECE | _CWR) == _ECE | _CWR
    assert not any(each.values(*ANY) for each in syns)


def test_a_client_whose_port_is_a_servers(cgroup: Path, box: Middlebox) -> None:
    """The kernel gave it one of `server_ports`, say: it is the one who connected."""
    port = 40_000

    def connecting() -> socket.socket:
        sock = socket.socket()
        sock.settimeout(10)
        sock.bind((CLIENT, port))
        sock.connect((SERVER, PORT))
        return sock

    with stamped(cgroup, server_ports=[PORT, port]) as stamping, listening(box) as server:
        with box.client.run(connecting) as client:
            accepted, _ = server.accept()
            with accepted:
                talk(client, accepted)
        whole(stamping, box)
        assert stamping.counters()["told"] == 1
    assert not any(each.values(TOLD) for each in box.of_client())


@pytest.mark.parametrize("refused", [True, False])
def test_a_socket_that_is_used_again(cgroup: Path, box: Middlebox, *, refused: bool) -> None:
    """What it knew of a peer it does not tell a host that is none, nor keeps it room for that."""
    with box.server.entered(), IPRoute() as route:
        index = route.link_lookup(ifname="eth0")[0]
        route.addr("add", index=index, address=STRANGER, prefixlen=24)

    def connecting() -> socket.socket:
        sock = socket.socket()
        sock.settimeout(10)
        with contextlib.suppress(ConnectionRefusedError):
            sock.connect((SERVER, PORT))
        return sock

    host = STRANGER if refused else "0.0.0.0"
    with stamped(cgroup, peers=ONLY_HOSTS) as stamping, listening(box, host) as server:
        with box.client.run(connecting) as client:
            if not refused:
                accepted, _ = server.accept()
                with accepted:
                    talk(client, accepted)
            _disconnect(client)
            settled(box)
            before = stamping.counters()
            box.client.run(lambda: client.connect((STRANGER, PORT)))
            accepted, _ = server.accept()
            with accepted:
                talk(client, accepted)
            sent = box.of_client()
            after = stamping.counters()
        # The server tells its ID, for to it the client is a peer.
        assert sent
        assert not any(each.values(*ANY) for each in sent)
        assert {each.full for each in sent if not each.flags & SYN} == {12}
        names = ("asked", "wrote", "learnt", "learnt_late")
        assert [after[name] for name in names] == [before[name] for name in names]


def test_a_socket_that_is_used_again_for_a_peer(cgroup: Path, box: Middlebox) -> None:
    """It has no ID until this server tells it one, whatever it was told before."""
    with stamped(cgroup) as stamping, listening(box) as server, connected(box, server) as ends:
        client, accepted = ends
        talk(client, accepted)
        assert stamping.id_of(client) == ID
        _disconnect(client)
        settled(box)
        box.alter = strip_syn_acks
        box.client.run(lambda: client.connect((SERVER, PORT)))
        again, _ = server.accept()
        with again:
            again.settimeout(10)
            talk(client, again)
        sent = [each for each in box.of_client() if not each.flags & SYN]
        assert sent[0].values(WROTE) == [0]
        assert sent[-1].values(WROTE) == [ID]
        assert stamping.counters()["learnt_late"] == 1


def test_a_client_that_asked_in_vain_is_told_at_last(cgroup: Path, box: Middlebox) -> None:
    """All that it asked on may be on its way before any answer can come."""
    answers = threading.Event()
    packets = 24

    def alter(segment: boxes.Segment, frame: bytearray) -> bool:
        strip_syn_acks(segment, frame)
        return bool(segment.to_server or segment.flags & SYN or answers.is_set())

    box.alter = alter
    _open_the_window(box)
    with stamped(cgroup) as stamping, listening(box) as server, connected(box, server) as ends:
        client, accepted = ends
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(packets):
            client.send(b"x")
        counters = stamping.counters()
        assert (counters["asked"], counters["silent"], counters["learnt_late"]) == (16, 1, 0)
        answers.set()
        accepted.sendall(b"answer")
        assert client.recv(100) == b"answer"
        assert stamping.counters()["learnt_late"] == 1
        received = 0
        while received < packets:
            received += len(accepted.recv(100))
        settled(box)
        talk(client, accepted)
        assert all(each.values(WROTE) == [ID] for each in box.of_client())


@pytest.mark.parametrize("first", [PORT, 8888])
def test_two_names_on_one_cgroup(cgroup: Path, box: Middlebox, first: int) -> None:
    """Each has ports of its own, and leaves the other's connections alone."""
    box.alter = strip_syn_acks
    with contextlib.ExitStack() as stack:
        names = {}
        for port in sorted({PORT, 8888}, key=lambda port: port != first):
            names[port] = stack.enter_context(
                stamped(
                    cgroup, name=f"of-{port}", server_id=port, server_ports=[port],
                    client_ports=[port],
                )
            )  # fmt: skip
        server = stack.enter_context(listening(box))
        with connected(box, server) as ends:
            talk(*ends)
        assert not any(names[8888].counters().values())
        counters = names[PORT].counters()
        assert counters["told"] == counters["learnt_late"] == counters["echoed"] == 1
        told = [each.values(TOLD) for each in box.of_server()]
        assert told[:2] == [[PORT], [PORT]]
        assert max(each.full for each in box.seen if not each.flags & SYN) == 20


@pytest.mark.parametrize("first", [True, False])
def test_two_programs_on_one_connection(cgroup: Path, box: Middlebox, *, first: bool) -> None:
    """One option, whose packets both count: so `stamp check` sees it on a host that stamps."""
    with contextlib.ExitStack() as stack:
        order = {"host": {}, "check": {"server_id": 0, "server_ports": []}}
        names = {}
        for name in sorted(order, reverse=first):
            names[name] = stack.enter_context(stamped(cgroup, name=name, **order[name]))
        server = stack.enter_context(listening(box))
        with connected(box, server) as ends:
            talk(*ends)
        for each in names.values():
            counters = each.counters()
            assert counters["learnt"] == 1
            assert counters["wrote"] >= 6
            assert counters["no_room"] == 0
        sent = [each.values(WROTE) for each in box.of_client() if not each.flags & SYN]
        assert sent[0] == [ID]


def test_both_open_at_once(cgroup: Path, box: Middlebox) -> None:
    """Nobody listened, so nobody tells; who connected to a server's port is a client all the same.

    The kernel establishes such a connection as if it had been accepted, and the client's own
    port is one of a server's too.
    """
    local = 40_001
    opened: set[bool] = set()

    def alter(segment: boxes.Segment, _frame: bytearray) -> bool:
        # Neither arrives before both have opened.
        if segment.flags & (SYN | ACK) == SYN:
            opened.add(segment.to_server)
            return len(opened) == 2
        return not segment.flags & RST

    box.alter = alter
    ends: dict[str, socket.socket] = {}

    def connecting(name: str, port: int, target: tuple[str, int]) -> None:
        sock = socket.socket()
        sock.settimeout(10)
        sock.bind(("", port))
        sock.connect(target)
        ends[name] = sock

    with stamped(cgroup, server_ports=[PORT, local]) as stamping:
        workers = [
            threading.Thread(
                target=lambda: box.client.run(lambda: connecting("client", local, (SERVER, PORT)))
            ),
            threading.Thread(
                target=lambda: box.server.run(lambda: connecting("server", PORT, (CLIENT, local)))
            ),
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        with ends["client"] as client, ends["server"] as server:
            talk(client, server, times=30)
            counters = stamping.counters()
        assert not any(each.values(*ANY) for each in box.seen if each.flags & SYN)
        assert counters["told"] == 0
        assert counters["asked"] > 0
        assert not any(each.values(TOLD) for each in box.of_client())


@pytest.mark.parametrize("inside", [True, False])
def test_a_server_that_listened_before(cgroup: Path, box: Middlebox, *, inside: bool) -> None:
    """It tells with SYN-ACKs from then on; one of another namespace is asked, and tells then.

    So is each on a kernel whose iterators can't wake a listener: the doctor says which it is.
    """
    woken = inside and _wakes()
    host = box.server if inside else box.client
    with listening(box) as server:
        stamping = host.run(lambda: Stamping.up(spec(cgroup)))
        try:
            with connected(box, server) as ends:
                talk(*ends)
            whole(stamping, box)
            counters = stamping.counters()
        finally:
            stamping.down()
    assert counters["told"] == counters["learnt"] == int(woken)
    assert counters["learnt_late"] == int(not woken)


def _wakes() -> bool:
    rows = [probe.ask() for probe in ways.probes() if probe.name == "waking listeners"]
    return [row.instead for row in rows] == [""]


def _open_the_window(box: Middlebox) -> None:
    """The client may send more than it asks on before anything is acknowledged."""
    with box.client.entered(), IPRoute() as route:
        index = route.link_lookup(ifname="eth0")[0]
        route.route(
            "replace", dst="10.7.0.0/24", oif=index, prefsrc=CLIENT, scope="link",
            metrics={"initcwnd": 32},
        )  # fmt: skip


def _disconnect(sock: socket.socket) -> None:
    """What `connect()` does with no address family, which Python has no words for."""
    libc = ctypes.CDLL(None, use_errno=True)
    nowhere = struct.pack("HHIQ", socket.AF_UNSPEC, 0, 0, 0)
    if libc.connect(sock.fileno(), nowhere, len(nowhere)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
