"""QUIC on the kernel, datagram by datagram: who gets what, across publishes and migrations."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct

import pytest

from sockway import Vip
from tests.sockets.conftest import Open
from tests.sockets.harness import Receipt, Receivers, client, owners, publish, target
from tests.sockets.packets import HANDSHAKE, INITIAL, V1, V2, ZERO_RTT, long_header, short_header

pytestmark = pytest.mark.root

SOURCES = ["sockway", "any"]
VERSIONS = [V1, V2]


def quic_vip(ids: str = "any", length: int = 16, host: str = "127.0.0.1") -> Vip:
    """A VIP with flow=quic."""
    return Vip.parse(f"udp://{host}:4433?flow=quic&ids={ids}&id_length={length}")


def ask(
    receivers: Receivers, vip: Vip, datagram: bytes, sock: socket.socket | None = None
) -> Receipt:
    """Send a datagram, from a new port unless a socket is given; who got it, and that it is whole.

    Nothing else may be under way.
    """
    with contextlib.ExitStack() as stack:
        sender = sock if sock is not None else stack.enter_context(client(vip))
        sender.sendto(datagram, target(vip))
        receipt = receivers.expect()
    assert receipt.payload == datagram
    return receipt


@pytest.mark.parametrize("ids", SOURCES)
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::]"])
def test_a_short_header_reaches_the_worker_that_its_id_names(
    open_service: Open, receivers: Receivers, ids: str, host: str
) -> None:
    """Every generation and worker, across publishes, from any address and without a table."""
    vip = quic_vip(ids, host=host)
    service = open_service(vip)
    generations = [publish(service, receivers, workers=3) for _ in range(3)]
    for generation in generations:
        minted = generation.ids(16)
        for worker in range(3):
            connection = minted.mint(generation.number, worker)
            for _ in range(3):  # each from another port: the client has migrated
                receipt = ask(receivers, vip, short_header(connection))
                assert receipt.owner == (generation.number, worker)
    assert service.counters().total("owner_by_id") == 27
    assert service.counters().total("flow_stored") == 0


@pytest.mark.parametrize("length", range(8, 21))
def test_both_sides_of_the_codec_agree_at_every_length(
    open_service: Open, receivers: Receivers, length: int
) -> None:
    """What Python mints BPF reads, in short and long headers; with one bit changed it does not."""
    vip = quic_vip("sockway", length)
    service = open_service(vip)
    first = publish(service, receivers, workers=256)
    publish(service, receivers, workers=1)
    minted = first.ids(length)
    for worker in (0, 1, 127, 255):
        connection = minted.mint(1, worker)
        assert ask(receivers, vip, short_header(connection)).owner == (1, worker)
        packet = long_header(connection, os.urandom(8), kind=HANDSHAKE)
        assert ask(receivers, vip, packet).owner == (1, worker)
    for bit in range(0, 8 * length, 3):
        broken = bytearray(connection)
        broken[bit // 8] ^= 1 << bit % 8
        assert ask(receivers, vip, short_header(bytes(broken))).owner == (2, 0)
    assert service.counters().total("owner_by_id") == 8


def test_ids_of_many_releases_ago_name_nobody(open_service: Open, receivers: Receivers) -> None:
    """A closed generation's ID is a stray; so is one whose slot another generation has now."""
    vip = quic_vip("sockway")
    service = open_service(vip)
    first = publish(service, receivers, workers=1)
    connection = first.ids(16).mint(1, 0)
    publish(service, receivers, workers=1)
    receivers.forget(first)
    first.close()
    assert ask(receivers, vip, short_header(connection)).generation == 2
    service.record.last_number = 32
    assert publish(service, receivers, workers=1).number == 33  # the slot of generation 1
    assert ask(receivers, vip, short_header(connection)).generation == 33
    counters = service.counters()
    assert counters.total("owner_generation_gone") == 2
    assert counters.total("owner_by_id") == 0


@pytest.mark.parametrize("ids", SOURCES)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_first_flight_sticks_to_its_worker(
    open_service: Open, receivers: Receivers, ids: str, version: int
) -> None:
    """Initials and 0-RTT with the client's own choice of ID, retransmitted, from another port."""
    vip = quic_vip(ids)
    service = open_service(vip)
    publish(service, receivers, workers=8)
    flights = []
    for _ in range(20):
        to, by = os.urandom(8), os.urandom(8)
        receipt = ask(receivers, vip, long_header(to, by, version=version))
        flights.append((to, by, receipt.owner))
    assert len({owner for *_, owner in flights}) > 1
    publish(service, receivers, workers=8)
    for to, by, owner in flights:
        for kind in (INITIAL, ZERO_RTT):
            packet = long_header(to, by, version=version, kind=kind)
            assert ask(receivers, vip, packet).owner == owner
    assert service.counters().total("owner_by_table") == 40


def test_the_type_bits_are_the_version_s(open_service: Open, receivers: Receivers) -> None:
    """A Handshake packet opens nothing, in either version: it is a stray, and not remembered."""
    vip = quic_vip("sockway")
    service = open_service(vip)
    publish(service, receivers)
    for version in VERSIONS:
        to = os.urandom(8)
        ask(receivers, vip, long_header(to, version=version, kind=HANDSHAKE))
        retry = {V1: 3, V2: 0}
        ask(receivers, vip, long_header(to, version=version, kind=retry))
    counters = service.counters()
    assert counters.total("stray") == 4
    assert counters.total("flow_stored") == counters.total("new_flow") == 0


@pytest.mark.parametrize("ids", SOURCES)
def test_500_unanswered_initials_stay(open_service: Open, receivers: Receivers, ids: str) -> None:
    """Nobody has answered yet, and every retransmission meets the process that has the first."""
    vip = quic_vip(ids)
    service = open_service(vip)
    publish(service, receivers, workers=4)
    firsts = [long_header(os.urandom(8), os.urandom(8), size=300) for _ in range(500)]
    before = {first: ask(receivers, vip, first).owner for first in firsts}
    publish(service, receivers, workers=4)
    after = {first: ask(receivers, vip, first).owner for first in firsts}
    assert after == before


@pytest.mark.parametrize("version", VERSIONS)
def test_an_initial_with_a_server_s_id_goes_to_that_id_s_owner(
    open_service: Open, receivers: Receivers, version: int
) -> None:
    """The client's second Initial has the server's ID already (RFC 9000, section 7.2)."""
    vip = quic_vip("sockway")
    service = open_service(vip)
    first = publish(service, receivers, workers=4)
    publish(service, receivers, workers=4)
    for worker in range(4):
        connection = first.ids(16).mint(1, worker)
        packet = long_header(connection, os.urandom(8), version=version)
        assert ask(receivers, vip, packet).owner == (1, worker)
    assert service.counters().total("flow_stored") == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_s_own_ids_are_followed_by_address(
    open_service: Open, receivers: Receivers, version: int
) -> None:
    """With ids=any the handshake goes on by address and client's ID, then by address alone."""
    vip = quic_vip("any")
    service = open_service(vip)
    publish(service, receivers, workers=4)
    with client(vip) as sock:
        by, server = os.urandom(8), os.urandom(18)
        owner = ask(receivers, vip, long_header(os.urandom(8), by, version=version), sock).owner
        publish(service, receivers, workers=4)
        for kind in (INITIAL, HANDSHAKE):
            packet = long_header(server, by, version=version, kind=kind)
            assert ask(receivers, vip, packet, sock).owner == owner
        for _ in range(3):
            assert ask(receivers, vip, short_header(server), sock).owner == owner


def test_without_foreign_ids_addresses_are_not_remembered(
    open_service: Open, receivers: Receivers
) -> None:
    """With ids=sockway a Handshake packet of an ID that is not ours is a stray: to the new one."""
    vip = quic_vip("sockway")
    service = open_service(vip)
    publish(service, receivers, workers=1)
    with client(vip) as sock:
        by = os.urandom(8)
        assert ask(receivers, vip, long_header(os.urandom(8), by), sock).generation == 1
        publish(service, receivers, workers=1)
        packet = long_header(os.urandom(18), by, kind=HANDSHAKE)
        assert ask(receivers, vip, packet, sock).generation == 2
        assert ask(receivers, vip, short_header(os.urandom(16)), sock).generation == 2


@pytest.mark.parametrize("ids", SOURCES)
def test_two_connections_from_one_port_do_not_mix(
    open_service: Open, receivers: Receivers, ids: str
) -> None:
    """The second, opened after a publish, goes to the new generation, and the first stays."""
    vip = quic_vip(ids)
    service = open_service(vip)
    first = publish(service, receivers, workers=4)
    with client(vip) as sock:
        one, two = (os.urandom(8), os.urandom(8)), (os.urandom(8), os.urandom(8))
        owner = ask(receivers, vip, long_header(*one), sock).owner
        second = publish(service, receivers, workers=4)
        other = ask(receivers, vip, long_header(*two), sock).owner
        assert (owner[0], other[0]) == (1, 2)
        for _ in range(2):
            assert ask(receivers, vip, long_header(*one), sock).owner == owner
            assert ask(receivers, vip, long_header(*two), sock).owner == other
        if ids == "any":
            for (_, by), whose in ((one, owner), (two, other)):
                packet = long_header(os.urandom(18), by, kind=HANDSHAKE)
                assert ask(receivers, vip, packet, sock).owner == whose
        for generation, whose in ((first, owner), (second, other)):
            minted = generation.ids(16).mint(*whose)
            assert ask(receivers, vip, short_header(minted), sock).owner == whose


def test_coalesced_packets_go_with_the_first(open_service: Open, receivers: Receivers) -> None:
    """Initial and Handshake, or Handshake and short header, in one datagram."""
    vip = quic_vip("sockway")
    service = open_service(vip)
    first = publish(service, receivers, workers=4)
    publish(service, receivers, workers=4)
    connection = first.ids(16).mint(1, 3)
    by = os.urandom(8)
    initial = long_header(connection, by, size=200)
    handshake = long_header(connection, by, kind=HANDSHAKE, size=200)
    for datagram in (initial + handshake, handshake + short_header(connection), initial * 5):
        assert ask(receivers, vip, datagram).owner == (1, 3)


@pytest.mark.parametrize("ids", SOURCES)
def test_truncated_datagrams_are_neither_lost_nor_obeyed(
    open_service: Open, receivers: Receivers, ids: str
) -> None:
    """Every length from 0 to 80 of long and short headers, and all of it arrives.

    An ID that is whole is obeyed from 25 octets on: nothing shorter can be decrypted (RFC 9001,
    section 5.4.2).
    """
    vip = quic_vip(ids)
    service = open_service(vip)
    first = publish(service, receivers, workers=2)
    publish(service, receivers, workers=2)
    connection = first.ids(16).mint(1, 1)
    whole = {
        "short": (short_header(connection, 80), 25),
        "long": (long_header(connection, os.urandom(20), kind=HANDSHAKE, size=80), 43),
        "initial": (long_header(connection, b"", size=80), 25),
    }
    for name, (packet, enough) in whole.items():
        for length in range(81):
            # From a new port each: an Initial with ids=any would be remembered by address.
            receipt = ask(receivers, vip, packet[:length])
            expected = 1 if length >= enough else 2
            assert receipt.generation == expected, (name, length)


def test_what_no_version_allows_arrives_nevertheless(
    open_service: Open, receivers: Receivers
) -> None:
    """Version 0, an unknown version, IDs beyond 20 octets: any worker of the published answers."""
    vip = quic_vip("any")
    service = open_service(vip)
    publish(service, receivers, workers=2)
    publish(service, receivers, workers=2)
    for version in (0, 1, V2, 0x1A2A3A4A, 0xFFFFFFFF):
        for to in (0, 1, 7, 20, 21, 64, 255):
            for by in (0, 20, 21, 255):
                packet = long_header(os.urandom(to), os.urandom(by), version=version)
                assert ask(receivers, vip, packet).generation == 2


def test_an_unknown_version_s_retransmissions_stay(
    open_service: Open, receivers: Receivers
) -> None:
    """It may be one that the server speaks: its first packets are remembered like version 1's."""
    vip = quic_vip("sockway")
    service = open_service(vip)
    publish(service, receivers, workers=4)
    packet = long_header(os.urandom(12), os.urandom(8), version=0x00000003)
    owner = ask(receivers, vip, packet).owner
    publish(service, receivers, workers=4)
    assert ask(receivers, vip, packet).owner == owner


def test_short_and_empty_ids_are_nobody_s_flow(open_service: Open, receivers: Receivers) -> None:
    """An ID below eight octets is no client's choice: many connections may share it."""
    vip = quic_vip("sockway")
    service = open_service(vip)
    publish(service, receivers, workers=2)
    for length in range(8):
        ask(receivers, vip, long_header(bytes(length)))
    publish(service, receivers, workers=2)
    for length in range(8):
        assert ask(receivers, vip, long_header(bytes(length))).generation == 2
    assert service.counters().total("flow_stored") == 0


def test_one_bind_serves_both_families(open_service: Open, receivers: Receivers) -> None:
    """An ID minted for a connection over IPv4 is good over IPv6: the client changed networks."""
    vip = quic_vip("any", host="[::]")
    service = open_service(vip)
    first = publish(service, receivers, workers=4)
    publish(service, receivers, workers=4)
    connection = first.ids(16).mint(1, 2)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(short_header(connection), (host, 4433))
            assert receivers.expect().owner == (1, 2)
            by = os.urandom(8)
            sock.sendto(long_header(os.urandom(8), by), (host, 4433))
            owner = receivers.expect().owner
            sock.sendto(long_header(os.urandom(18), by, kind=HANDSHAKE), (host, 4433))
            assert receivers.expect().owner == owner


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_fragmented_datagrams_find_their_owner(
    open_service: Open, receivers: Receivers, inside: object, host: str
) -> None:
    """Large ones are cut by IP and put together again before the router sees them."""
    del inside
    vip = quic_vip("any", host=host)
    service = open_service(vip)
    first = publish(service, receivers, workers=4)
    publish(service, receivers, workers=4)
    set_loopback_mtu(1500)
    connection = first.ids(16).mint(1, 3)
    for size in (1400, 1501, 9000, 40_000, 65_000):
        assert ask(receivers, vip, short_header(connection, size)).owner == (1, 3)
        packet = long_header(connection, os.urandom(8), kind=HANDSHAKE, size=min(size, 16_000))
        assert ask(receivers, vip, packet).owner == (1, 3)
    first_flight = long_header(os.urandom(8), os.urandom(8), size=9000)
    owner = ask(receivers, vip, first_flight).owner
    publish(service, receivers, workers=4)
    assert ask(receivers, vip, first_flight).owner == owner


def set_loopback_mtu(octets: int) -> None:
    """Make IP fragment what is larger, in this thread's network namespace."""
    set_mtu = 0x8922
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, set_mtu, struct.pack("16si12x", b"lo", octets))


def test_random_ids_are_not_taken_for_ours(open_service: Open, receivers: Receivers) -> None:
    """Ten thousand IDs that nobody minted: not one passes the check."""
    vip = quic_vip("sockway")
    service = open_service(vip)
    publish(service, receivers, workers=256)
    with client(vip) as sock:
        for _ in range(100):
            for _ in range(100):
                sock.sendto(short_header(os.urandom(16), 40), target(vip))
            assert {g for g, _ in owners(receivers.drain(100))} == {1}
    counters = service.counters()
    assert counters.total("owner_by_id") == counters.total("owner_generation_gone") == 0
    assert counters.total("stray") == 10_000
