"""Takeover piece by piece: whose a packet is, what an envelope keeps, and who dies when."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from sockway.kernel import Netns
from sockway.takeover.forward import Address, Inbox, Owner, Peers
from sockway.takeover.routing import ByAddress, ByConnectionId
from sockway.wire.host_id import HostIds

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


class Echoes:
    """Generations of the UDP echo under takeover, in a namespace."""

    def __init__(self, netns: Netns, directory: Path, stack: ExitStack) -> None:
        """None yet."""
        self.netns = netns
        self.directory = directory
        self.stack = stack

    def start(self, generation: int, *, idle: bool = False) -> subprocess.Popen[str]:
        """Start one; it may have taken over when this returns."""
        env = os.environ | {
            "TAKEOVER_LISTEN": "udp://[::]:4433?flow=tuple",
            "TAKEOVER_DIRECTORY": str(self.directory),
            "SOCKWAY_GENERATION": str(generation),
            "SOCKWAY_WORKER": "0",
            "PYTHONUNBUFFERED": "1",
        }
        process = self.netns.run(
            lambda: subprocess.Popen(
                [sys.executable, "-c", IDLE if idle else STARTER, "-m", "sockway.lab.servers.echo"],
                stdout=subprocess.PIPE,
                env=env,
                text=True,
            )
        )
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        return process

    def serving(self, generation: int) -> subprocess.Popen[str]:
        """Start one, and wait until it has taken over."""
        process = self.start(generation)
        assert _says(process) == "takeover: serving"
        return process

    def client(self) -> socket.socket:
        """A new flow."""
        sock = self.netns.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        self.stack.enter_context(sock)
        sock.settimeout(3)
        sock.connect(("::1", 4433))
        return sock


STARTER = """
from sockway.takeover import run
{more}
run.main()
"""
IDLE = STARTER.format(more="run.Agent.serve = lambda *_: print('has the sockets', flush=True)")
STARTER = STARTER.format(more="")


def _answerer(sock: socket.socket) -> int:
    sock.send(b"x")
    return int(sock.recv(100).split()[1])


@pytest.fixture
def echoes(netns: Netns, tmp_path: Path) -> Iterator[Echoes]:
    """A place for them."""
    with ExitStack() as stack:
        yield Echoes(netns, tmp_path, stack)


def _says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


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
    assert _answerer(client) == 1
    dead = echoes.start(2, idle=True)
    assert _says(dead) == "has the sockets"
    assert _answerer(client) == 1
    dead.kill()
    dead.wait()
    assert _answerer(client) == _answerer(echoes.client()) == 1
    echoes.serving(3)
    assert (_answerer(client), _answerer(echoes.client())) == (1, 3)


@pytest.mark.root
def test_the_old_process_goes_on_if_the_new_one_dies(echoes: Echoes) -> None:
    """A dead successor's sockets, control address and new flows are the old one's again."""
    echoes.serving(1)
    client = echoes.client()
    assert _answerer(client) == 1
    second = echoes.serving(2)
    young = echoes.client()
    assert (_answerer(client), _answerer(young)) == (1, 2)
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert (_answerer(client), _answerer(young)) == (1, 1)
    echoes.serving(3)
    assert (_answerer(client), _answerer(young), _answerer(echoes.client())) == (1, 1, 3)


@pytest.mark.root
def test_flows_of_a_dead_old_process_are_taken_by_the_new_one(echoes: Echoes) -> None:
    """Forwarding to nobody is noticed, and the flow begins anew."""
    first = echoes.serving(1)
    client = echoes.client()
    assert _answerer(client) == 1
    echoes.serving(2)
    assert _answerer(client) == 1
    first.kill()
    first.wait()

    def answered() -> bool:
        client.settimeout(0.2)
        try:
            return _answerer(client) == 2
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
    assert _answerer(echoes.client()) == 2


@pytest.mark.root
def test_a_process_that_is_succeeded_may_end(echoes: Echoes) -> None:
    """The first goes on draining when the second, which the third has succeeded, ends."""
    echoes.serving(1)
    client = echoes.client()
    assert _answerer(client) == 1
    second = echoes.serving(2)
    echoes.serving(3)
    second.terminate()
    second.wait()
    assert (_answerer(client), _answerer(echoes.client())) == (1, 3)
    for _ in range(5):
        assert _answerer(echoes.client()) == 3
