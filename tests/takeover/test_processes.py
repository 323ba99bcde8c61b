"""Takeover piece by piece: whose a packet is, what an envelope keeps, and who dies when."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from sockway.takeover.forward import Address, Inbox, Owner, Peers
from sockway.takeover.routing import ByAddress, ByConnectionId
from sockway.wire.host_id import HostIds
from tests.takeover.echoes import Echoes, answerer

KEY = bytes(range(16))
OLD, NEW = Owner(1, 0), Owner(2, 0)
PEER: Address = ("2001:db8::7", 40_000, 0, 0)


def _short(cid: bytes) -> bytes:
    return b"\x40" + cid + b"payload"


def _initial() -> tuple[bytes, bytes]:
    """A client's first packet, and the ID that it chose."""
    client = QuicConnection(configuration=QuicConfiguration(is_client=True))
    client.connect(("192.0.2.1", 443), now=0.0)
    data, _ = client.datagrams_to_send(now=0.0)[0]
    return data, client.original_destination_connection_id


def test_a_connection_id_names_its_owner() -> None:
    """Own packets stay, others' are theirs, and what is nobody's is left to the server."""
    ids = HostIds(KEY, 16)
    router = ByConnectionId(NEW, KEY, 16)
    assert router.owner(_short(ids.mint(1, 0)), PEER) == OLD
    assert router.owner(_short(ids.mint(2, 1)), PEER) == Owner(2, 1)
    assert router.owner(_short(ids.mint(2, 0)), PEER) is None
    assert router.owner(_short(bytes(16)), PEER) is None
    assert router.owner(b"", PEER) is None
    assert router.owner(b"\xc0", PEER) is None


def test_a_repeated_first_packet_meets_the_process_that_had_it() -> None:
    """A client-chosen ID is in the table that is handed over, and goes on to the one after."""
    data, cid = _initial()
    assert data[6 : 6 + data[5]] == cid
    routers = [ByConnectionId(Owner(number, 0), KEY, 16) for number in (1, 2, 3)]
    assert routers[0].owner(data, PEER) is None
    for older, newer in pairwise(routers):
        newer.take(older.export())
        assert newer.owner(data, PEER) == OLD
    other, _ = _initial()
    assert routers[2].owner(other, PEER) is None


def test_flows_are_handed_over_and_orphans_adopted() -> None:
    """A peer is the old process's until that is gone."""
    old, new = ByAddress(OLD), ByAddress(NEW)
    assert old.owner(b"", PEER) is None
    new.take([[list(PEER), 1, 0, 0.5]])
    assert new.owner(b"", PEER) == OLD
    new.orphaned(b"", PEER)
    assert new.owner(b"", PEER) is None
    assert [row[1:3] for row in new.export()] == [[2, 0]]


@pytest.mark.parametrize("peer", [PEER, ("192.0.2.9", 53), ("fe80::1", 9, 0, 3)])
def test_an_envelope_keeps_where_a_packet_came_from(tmp_path: Path, peer: Address) -> None:
    """What the owner gets is what the kernel would have told it; forged envelopes count nothing."""
    inbox, peers = Inbox(tmp_path, OLD), Peers(tmp_path)
    got: list[tuple[int, bytes, Address]] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
        forger.sendto(bytes(100), inbox.socket.getsockname())
        forger.sendto(b"", inbox.socket.getsockname())
    assert peers.send(OLD, 3, b"packet", peer)
    inbox.read(lambda *packet: got.append(packet))
    assert got == [(3, b"packet", peer)]
    assert inbox.received == 1
    assert not peers.send(NEW, 3, b"packet", peer)
    inbox.close()
    assert not (peers.send(OLD, 3, b"lost", peer) and peers.send(OLD, 3, b"packet", peer))
    peers.close()


def _within(seconds: float, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.root
def test_a_new_process_that_dies_early_changes_nothing(echoes: Echoes) -> None:
    """It has the sockets already, and is killed before it is ready."""
    echoes.serving(1)
    client = echoes.client()
    assert answerer(client) == 1
    dead = echoes.slow(2, 60)
    assert answerer(client) == 1
    dead.kill()
    dead.wait()
    assert answerer(client) == answerer(echoes.client()) == 1
    echoes.serving(3)
    assert (answerer(client), answerer(echoes.client())) == (1, 3)


@pytest.mark.root
def test_the_old_process_goes_on_if_the_new_one_dies(echoes: Echoes) -> None:
    """A dead successor's sockets, control address and new flows are the old one's again."""
    echoes.serving(1)
    client = echoes.client()
    assert answerer(client) == 1
    second = echoes.serving(2)
    young = echoes.client()
    assert (answerer(client), answerer(young)) == (1, 2)
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert (answerer(client), answerer(young)) == (1, 1)
    echoes.serving(3)
    assert (answerer(client), answerer(young), answerer(echoes.client())) == (1, 1, 3)


@pytest.mark.root
def test_flows_of_a_dead_old_process_are_taken_by_the_new_one(echoes: Echoes) -> None:
    """Forwarding to nobody is noticed, and the flow begins anew."""
    first = echoes.serving(1)
    client = echoes.client()
    assert answerer(client) == 1
    echoes.serving(2)
    assert answerer(client) == 1
    first.kill()
    first.wait()

    def answered() -> bool:
        client.settimeout(0.2)
        try:
            return answerer(client) == 2
        except TimeoutError:
            return False

    _within(3, answered)


@pytest.mark.root
def test_without_a_process_before_it_binds_itself(echoes: Echoes) -> None:
    """Where the one before is dead, its control address is of no use: the sockets are new ones."""
    first = echoes.serving(1)
    first.kill()
    first.wait()
    echoes.serving(2)
    assert answerer(echoes.client()) == 2


@pytest.mark.root
def test_a_process_that_is_succeeded_may_end(echoes: Echoes) -> None:
    """The first goes on draining when the second, which the third has succeeded, ends."""
    echoes.serving(1)
    client = echoes.client()
    assert answerer(client) == 1
    second = echoes.serving(2)
    echoes.serving(3)
    second.terminate()
    second.wait()
    assert (answerer(client), answerer(echoes.client())) == (1, 3)
    for _ in range(5):
        assert answerer(echoes.client()) == 3
