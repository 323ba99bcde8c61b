"""Two hosts whose connections are stamped: what tests of the stamp program share."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from sockway.balancer.stamping import Stamping, StampingSpec
from tests.balancer.middlebox import FIN, SERVER, SYN, Middlebox, Segment, stripped

PORT = 7777
ID = 0xABCDEF
TOLD, WROTE = 0xB6, 0xB7
PEERS = [ip_network("10.7.0.0/24"), ip_network("fd07::/64")]
ANY = {TOLD, WROTE}


def spec(cgroup: Path, **changed: Any) -> StampingSpec:
    """Both hosts' sockets, for they are in one cgroup."""
    fields: dict[str, Any] = {
        "name": cgroup.name, "cgroup": cgroup, "server_id": ID, "server_ports": [PORT],
        "client_ports": [PORT], "peers": PEERS, "server_kind": TOLD, "client_kind": WROTE,
    }  # fmt: skip
    return StampingSpec(**(fields | changed))


@contextlib.contextmanager
def stamped(cgroup: Path, **changed: Any) -> Iterator[Stamping]:
    """Stamps, while the block lasts."""
    made = Stamping.up(spec(cgroup, **changed))
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


def strip_syn_acks(segment: Segment, frame: bytearray) -> bool:
    """The middlebox takes the ID off each SYN-ACK."""
    if not segment.to_server and segment.flags & SYN:
        stripped({TOLD}, segment, frame)
    return True


def settled(box: Middlebox) -> None:
    """Forget what the box has seen, when all that is on its way has come."""
    known = -1
    while known != len(box.seen):
        known = len(box.seen)
        time.sleep(0.08)  # a delayed acknowledgement takes 40 ms
    box.seen.clear()
    box.frames.clear()


__all__ = [
    "ANY",
    "ID",
    "PEERS",
    "PORT",
    "TOLD",
    "WROTE",
    "connected",
    "listening",
    "settled",
    "spec",
    "stamped",
    "strip_syn_acks",
    "talk",
    "whole",
]
