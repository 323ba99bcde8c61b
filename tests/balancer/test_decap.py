"""The backend's program: tunnels of balancers are opened, and nothing else is touched."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from itertools import product
from typing import Any

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from sockway.balancer.host import LAYOUT, HostSpec, _fill
from sockway.balancer.layout import swapped
from sockway.kernel import BpfObject, Netns, Program

pytestmark = pytest.mark.root

LINKS: dict[str, Any] = {"dst": "02:00:00:00:00:aa", "src": "02:00:00:00:00:bb"}
BALANCER, BALANCER6 = "10.0.0.7", "fd00::7"
END, END6 = "10.0.1.1", "fd00:1::1"
VIP, VIP6 = "192.0.2.1", "2001:db8::1"
CLIENT, CLIENT6 = "198.51.100.9", "2001:db8:9::9"
GUE = 6080
DROP, PASS = 1, 2
CE, ECT0, ECT1 = 3, 2, 1


@pytest.fixture(scope="module")
def made() -> Iterator[BpfObject]:
    """The program, loaded for two balancers' networks, two ends and two VIPs."""
    spec = HostSpec(
        interfaces=["eth0"],
        balancers=[ip_network("10.0.0.0/24"), ip_network("fd00::/64")],
        vips=[ip_address(VIP), ip_address(VIP6)],
    )
    with BpfObject.open(LAYOUT.source, name="decap") as made:
        config = LAYOUT.struct("decap_config")()
        config.gue_port = swapped(GUE)
        made.rodata["config"] = config
        made.load()
        _fill(made, spec, [ip_address(END), ip_address(END6)])
        yield made


@pytest.fixture(scope="module")
def program(made: BpfObject) -> Iterator[Program]:
    """Its XDP program."""
    with made.program("decap") as opened:
        yield opened


def counted(made: BpfObject) -> dict[str, int]:
    """Packets by outcome."""
    names = LAYOUT.names("decap_outcome", "DECAP_OUTCOMES")
    rows = [cpu.outcome for cpu in made.map("counters")[0]]
    return {name: sum(int(row[i]) for row in rows) for i, name in enumerate(names)}


def grown(made: BpfObject, before: dict[str, int]) -> dict[str, int]:
    """Counters that grew."""
    return {name: n - before[name] for name, n in counted(made).items() if n != before[name]}


def inner(version: int, **fields: Any) -> Packet:
    """A client's packet."""
    if version == 4:
        return IP(src=CLIENT, dst=VIP, **fields) / TCP(dport=443) / Raw(b"hello")
    return IPv6(src=CLIENT6, dst=VIP6, **fields) / TCP(dport=443) / Raw(b"hello")


def outer(version: int, *, gue: bool = False, **fields: Any) -> Packet:
    """A tunnel's headers."""
    if version == 4:
        made: Packet = IP(**{"src": BALANCER, "dst": END} | fields)
    else:
        made = IPv6(**{"src": BALANCER6, "dst": END6} | fields)
    return made / UDP(sport=0xC123, dport=GUE, chksum=0) if gue else made


def whole(version: int, packet: Packet, *, gue: bool = False, **fields: Any) -> Packet:
    """A packet in a tunnel, with its protocol."""
    kind = 4 if packet.version == 4 else 41
    if not gue:
        fields |= {"proto" if version == 4 else "nh": kind}
    return Ether(**LINKS) / outer(version, gue=gue, **fields) / Raw(bytes(packet))


ALL = list(product((4, 6), (4, 6), (False, True)))


@pytest.mark.parametrize(("around", "within", "gue"), ALL)
@pytest.mark.parametrize("tags", [0, 1, 2])
def test_a_tunnel_is_opened(
    made: BpfObject, program: Program, around: int, within: int, *, gue: bool, tags: int
) -> None:
    """Link addresses and tags stay; what was inside follows, octet for octet."""
    packet = whole(around, inner(within), gue=gue)
    head = Ether(**LINKS)
    for number in range(tags):
        head = head / Dot1Q(vlan=5 + number)
    frame = head / packet.payload
    before = counted(made)
    run = program.test_run(bytes(frame))
    assert run.retval == PASS
    expected = bytes(head / inner(within))
    assert run.data == expected
    assert grown(made, before) == {"decapsulated": 1}


@pytest.mark.parametrize(
    ("fields", "packet", "outcome"),
    [
        ({"src": "10.0.2.7"}, inner(4), "foreign_source"),
        ({"dst": "10.0.1.2"}, inner(4), "foreign_end"),
        ({}, IP(src=CLIENT, dst="192.0.2.9") / TCP(), "foreign_vip"),
        ({}, IP(src=CLIENT, dst=VIP, len=60) / TCP(), "decap_malformed"),
        ({}, IP(src=CLIENT, dst=VIP, ihl=4) / TCP(), "decap_malformed"),
    ],
)
@pytest.mark.parametrize("gue", [False, True])
def test_what_is_not_for_us_is_passed_untouched(  # noqa: PLR0917
    made: BpfObject,
    program: Program,
    fields: dict[str, str],
    packet: Packet,
    outcome: str,
    gue: bool,  # noqa: FBT001
) -> None:
    """And counted, for it may be a mistake of somebody's."""
    frame = bytes(whole(4, packet, gue=gue, **fields))
    before = counted(made)
    run = program.test_run(frame)
    assert (run.retval, run.data) == (PASS, frame)
    assert grown(made, before) == {outcome: 1}


@pytest.mark.parametrize(("around", "within", "gue"), ALL)
def test_whatever_is_cut_short_is_passed(
    program: Program, around: int, within: int, *, gue: bool
) -> None:
    """At each length up to the last octet of the inner IP header."""
    frame = bytes(whole(around, inner(within), gue=gue))
    headers = 14 + (20 if around == 4 else 40) + 8 * gue + (20 if within == 4 else 40)
    for length in range(14, headers):
        run = program.test_run(frame[:length])
        assert (run.retval, run.data) == (PASS, frame[:length])


def test_fragments_options_and_other_ports_are_passed(made: BpfObject, program: Program) -> None:
    """A tunnel's packet has none of these."""
    before = counted(made)
    for packet in (
        whole(4, inner(4), flags="MF"),
        whole(4, inner(4), frag=9),
        whole(4, inner(4), options=b"\x01" * 4),
        Ether(**LINKS) / IP(src=BALANCER, dst=END) / UDP(dport=GUE + 1) / Raw(bytes(inner(4))),
        Ether(**LINKS) / IP(src=BALANCER, dst=END) / TCP(dport=80),
        Ether(**LINKS) / inner(4),
        Ether(**LINKS) / inner(6),
    ):
        run = program.test_run(bytes(packet))
        assert (run.retval, run.data) == (PASS, bytes(packet))
    assert not grown(made, before)


ECN = list(product(range(4), range(4)))


@pytest.mark.parametrize(("inside", "outside"), ECN)
@pytest.mark.parametrize("version", [4, 6])
def test_congestion_that_the_tunnel_met_is_told(
    made: BpfObject, program: Program, version: int, inside: int, outside: int
) -> None:
    """RFC 6040, section 4.2, figure 4: what arrives, by the two headers' ECN."""
    dscp = 0x2E << 2
    field = {"tos" if version == 4 else "tc": dscp | inside}
    frame = whole(4, inner(version, **field), tos=outside)
    before = counted(made)
    run = program.test_run(bytes(frame))
    if inside == 0 and outside == CE:
        assert run.retval == DROP
        assert grown(made, before) == {"ecn_contradicts": 1}
        return
    assert run.retval == PASS
    expected = inside
    if inside and outside == CE:
        expected = CE
    elif inside == ECT0 and outside == ECT1:
        expected = ECT1
    wanted = inner(version, **{next(iter(field)): dscp | expected})
    # scapy computes the header's checksum anew: ours must be the same.
    assert run.data == bytes(Ether(**LINKS) / wanted)


NOTHING: list[Any] = [("NOP", None), ("NOP", None)]
TIMES = [*NOTHING, ("Timestamp", (1, 2))]
SACK = [*TIMES, *NOTHING, ("SAck", (1, 2, 3, 4, 5, 6))]


def crowded(version: int, port: int = 40_000, flags: str = "A", **fields: Any) -> Packet:
    """A client's packet whose header is full of options."""
    ip = IP(src=CLIENT, dst=VIP, **fields) if version == 4 else IPv6(src=CLIENT6, dst=VIP6)
    made = ip / TCP(sport=port, dport=443, flags=flags, options=SACK)
    assert len(made[TCP]) == 60
    return made


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("gue", [False, True])
def test_a_full_header_of_no_connection_is_dropped(
    made: BpfObject, program: Program, version: int, *, gue: bool
) -> None:
    """Its answer would be a reset, which would end the connection at another host."""
    before = counted(made)
    packet = crowded(version)
    assert program.test_run(bytes(whole(4, packet, gue=gue))).retval == DROP
    packet[TCP].options = [*NOTHING, ("SAck", (1, 2, 3, 4, 5, 6, 7, 8))]
    assert program.test_run(bytes(whole(4, packet, gue=gue))).retval == DROP
    assert grown(made, before) == {"stray": 2}


@pytest.mark.parametrize(
    "packet",
    [
        crowded(4, flags="S"),
        crowded(4, frag=1),
        IP(src=CLIENT, dst=VIP)
        / TCP(dport=443, flags="A", options=[*TIMES, *NOTHING, ("SAck", (1, 2, 3, 4))]),
        IP(src=CLIENT, dst=VIP) / UDP(dport=443) / Raw(b"\xff" * 60),
    ],
)
def test_other_packets_of_no_connection_are_the_hosts(
    made: BpfObject, program: Program, packet: Packet
) -> None:
    """It answers as it does."""
    before = counted(made)
    assert program.test_run(bytes(whole(4, packet))).retval == PASS
    assert grown(made, before) == {"decapsulated": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_a_full_header_of_a_connection_gets_through(
    netns: Netns, made: BpfObject, program: Program, version: int
) -> None:
    """To the host that has it; a listener alone is none."""
    client, vip = ((CLIENT, VIP), (CLIENT6, VIP6))[version == 6]
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    frame = bytes(whole(4, crowded(version)))
    with netns.entered(), IPRoute() as route:
        for address in (client, vip):
            route.addr("add", index=1, address=address, prefixlen=32 if version == 4 else 128)
        with (
            socket.create_server((vip, 443), family=family) as server,
            socket.socket(family) as sock,
        ):
            before = counted(made)
            assert program.test_run(frame).retval == DROP
            sock.bind((client, 40_000))
            sock.connect((vip, 443))
            accepted, _ = server.accept()
            with accepted:
                assert program.test_run(frame).retval == PASS
            assert grown(made, before) == {"stray": 1, "decapsulated": 1}
