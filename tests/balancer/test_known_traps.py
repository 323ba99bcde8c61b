"""What goes wrong elsewhere, each case with its packet and answer built by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from sockway.kernel import Program, TestRun
from tests.balancer.differential import Setup, set_up

pytestmark = pytest.mark.root

LINKS: dict[str, Any] = {"dst": "02:00:00:00:00:aa", "src": "02:00:00:00:00:bb"}
CLIENT, CLIENT6 = "198.51.100.7", "2001:db8:9::7"
DROP, PASS, TRANSMIT, REDIRECT = 1, 2, 3, 4
SENT = (TRANSMIT, REDIRECT)


@pytest.fixture(scope="module")
def setup() -> Iterator[Setup]:
    """Everything that a configuration can have; see `differential.specification`."""
    with set_up() as made:
        yield made


@pytest.fixture(scope="module")
def program(setup: Setup) -> Iterator[Program]:
    """The balancer's program."""
    with setup.balancer._state.program("balancer") as opened:
        yield opened


def run(program: Program, packet: Packet) -> TestRun:
    """Give it a packet."""
    return program.test_run(bytes(packet))


def tunnel_of(program: Program, packet: Packet) -> str:
    """Where a packet goes to: the address of the tunnel's end."""
    outcome = run(program, packet)
    assert outcome.retval in SENT
    outer = Ether(outcome.data).payload
    return str(outer.dst)


def test_an_error_that_quotes_eight_octets_finds_its_backend(program: Program) -> None:
    """RFC 792 promises no more than 64 bits of the datagram: ports, no flags, no checksum."""
    for port in range(40000, 40020):
        data = Ether(**LINKS) / IP(src=CLIENT, dst="192.0.2.1") / TCP(sport=port, dport=443)
        back = IP(src="192.0.2.1", dst=CLIENT) / TCP(sport=443, dport=port)
        quote = Raw(bytes(back)[: 20 + 8])
        error = (
            Ether(**LINKS) / IP(src="203.0.113.1", dst="192.0.2.1")
            / ICMP(type=3, code=4, nexthopmtu=1400) / quote
        )  # fmt: skip
        assert tunnel_of(program, error) == tunnel_of(program, data)


def test_a_full_packet_that_the_tunnel_pushes_past_the_mtu_is_answered(program: Program) -> None:
    """The sender learns what fits: the path's MTU less the tunnel's headers."""
    # Pool narrow: IPv6 tunnel without GUE, MTU 1280.
    packet = (
        Ether(**LINKS) / Dot1Q(vlan=5) / IP(src=CLIENT, dst="192.0.2.2", flags="DF")
        / TCP(sport=1, dport=443) / Raw(b"x" * 1460)
    )  # fmt: skip
    outcome = run(program, packet)
    assert outcome.retval == TRANSMIT
    answer = Ether(outcome.data)
    assert (answer.src, answer.dst) == (LINKS["dst"], LINKS["src"])
    assert answer[Dot1Q].vlan == 5
    assert (answer[IP].src, answer[IP].dst) == ("192.0.2.2", CLIENT)
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 4)
    assert answer[ICMP].nexthopmtu == 1280 - 40
    head = len(Ether(**LINKS) / Dot1Q()) + 28
    assert outcome.data[head:] == bytes(packet[IP])[:512]
    ip = outcome.data[head - 28 : head - 8]
    assert _sum(ip) == 0xFFFF
    assert _sum(outcome.data[head - 8 :]) == 0xFFFF


def test_the_same_over_ipv6(program: Program) -> None:
    """No less than 1,280 is told, and the pseudo-header is in the checksum."""
    packet = (
        Ether(**LINKS) / IPv6(src=CLIENT6, dst="2001:db8::1") / TCP(dport=443) / Raw(b"x" * 1440)
    )
    outcome = run(program, packet)
    assert outcome.retval == TRANSMIT
    answer = Ether(outcome.data)
    assert answer[ICMPv6PacketTooBig].mtu == 1280
    assert (answer[IPv6].src, answer[IPv6].dst) == ("2001:db8::1", CLIENT6)
    body = outcome.data[14 + 40 :]
    pseudo = outcome.data[14 + 8 : 14 + 40] + len(body).to_bytes(4, "big") + b"\0\0\0\x3a"
    assert _sum(pseudo + body) == 0xFFFF


def test_one_octet_less_is_sent(program: Program) -> None:
    """What just fits goes through the tunnel."""
    fits = Ether(**LINKS) / IP(src=CLIENT, dst="192.0.2.2", flags="DF") / TCP(dport=443)
    fits = fits / Raw(b"x" * (1280 - 40 - 40))
    assert run(program, fits).retval in SENT
    assert run(program, fits / Raw(b"x")).retval == TRANSMIT
    assert Ether(run(program, fits / Raw(b"x")).data)[ICMP].type == 3


@pytest.mark.parametrize("checksum", [0xF7FF, 0xF800, 0xFFFF, 0x0000, 0xF7FE, 0xFFFE])
def test_the_checksum_of_an_echo_reply_when_the_addition_carries(
    program: Program, checksum: int
) -> None:
    """The type falls from 8 to 0, so the sum rises by 0x0800, around the corner if need be."""
    body = bytearray(b"ping" * 8)
    request = Ether(**LINKS) / IP(src=CLIENT, dst="192.0.2.1") / ICMP(id=1, seq=1) / bytes(body)
    # The payload's last word makes the checksum what it shall be.
    raw = bytes(request[ICMP])
    rest = raw[:2] + b"\0\0" + raw[4:-2]
    wanted = (~checksum & 0xFFFF) - _sum(rest)
    last = wanted % 0xFFFF
    request[Raw].load = bytes(body[:-2]) + last.to_bytes(2, "big")
    del request[ICMP].chksum
    request = Ether(bytes(request))
    sent = request[ICMP].chksum
    assert sent == checksum or {sent, checksum} == {0, 0xFFFF}
    outcome = run(program, request)
    assert outcome.retval == TRANSMIT
    reply = Ether(outcome.data)
    assert reply[ICMP].type == 0
    assert _sum(bytes(reply[ICMP])) in {0xFFFF, 0}
    assert _sum(bytes(reply[IP])[:20]) == 0xFFFF
    expected = ICMP(bytes(ICMP(type=0, id=1, seq=1) / request[Raw].load)).chksum
    assert reply[ICMP].chksum == expected or {reply[ICMP].chksum, expected} == {0, 0xFFFF}


def test_tags_and_extension_headers_change_nothing_of_the_choice(program: Program) -> None:
    """The flow is the same, so the backend is."""
    flow = IPv6(src=CLIENT6, dst="2001:db8::2")
    tcp = TCP(sport=1234, dport=8443, flags="A")
    plain = tunnel_of(program, Ether(**LINKS) / flow / tcp)
    for middle in (
        IPv6ExtHdrHopByHop(),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
    ):
        assert tunnel_of(program, Ether(**LINKS) / flow / middle / tcp) == plain
    outcome = run(program, Ether(**LINKS) / Dot1Q(vlan=3) / Dot1Q(vlan=4) / flow / tcp)
    outer = Ether(outcome.data)
    assert outer[IPv6].dst == plain
    assert (Dot1Q in outer) == (outcome.retval == TRANSMIT)


def test_gue_leaves_the_checksum_out(program: Program) -> None:
    """0, over IPv6 too (RFC 6935): the inner packet has its own, and it is still right."""
    for vip, version in (("192.0.2.2", 4), ("2001:db8::2", 6)):
        ip = IP(src=CLIENT, dst=vip) if version == 4 else IPv6(src=CLIENT6, dst=vip)
        packet = Ether(**LINKS) / ip / TCP(sport=7, dport=8443, flags="A") / Raw(b"data")
        outcome = run(program, packet)
        assert outcome.retval in SENT
        outer = Ether(outcome.data)
        assert outer[UDP].dport == 7001
        assert outer[UDP].chksum == 0
        assert outer[UDP].len == 8 + len(ip / TCP() / Raw(b"data"))
        inner = bytes(outer[UDP].payload)
        if version == 4:
            assert _sum(inner[:20]) == 0xFFFF
            assert inner[8] == IP().ttl - 1
        assert inner.endswith(bytes(packet.lastlayer()))


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_at_its_end_is_not_sent_on(setup: Setup, program: Program, ttl: int) -> None:
    """Else a loop of two balancers would never end."""
    before = setup.balancer.counters().outcomes["tcp://192.0.2.1:443"].get("ttl_expired", 0)
    packet = Ether(**LINKS) / IP(src=CLIENT, dst="192.0.2.1", ttl=ttl) / TCP(dport=443)
    assert run(program, packet).retval == DROP
    after = setup.balancer.counters().outcomes["tcp://192.0.2.1:443"]["ttl_expired"]
    assert after == before + 1


def test_options_of_ipv4_go_along(program: Program) -> None:
    """A header of more than five words is no obstacle, and arrives as it was."""
    ip = IP(src=CLIENT, dst="192.0.2.1", options=b"\x07\x07\x04" + bytes(5))
    packet = Ether(**LINKS) / ip / TCP(sport=9, dport=443, flags="A")
    outcome = run(program, packet)
    assert outcome.retval in SENT
    inner = outcome.data[14 + 20 :]
    assert inner[0] == 0x47
    assert inner[20:28] == b"\x07\x07\x04" + bytes(5)
    assert _sum(inner[:28]) == 0xFFFF


def test_whatever_is_cut_short_is_passed_as_it_came(program: Program) -> None:
    """At each length: passed unchanged, until all of the IP packet is there."""
    whole = bytes(Ether(**LINKS) / IP(src=CLIENT, dst="192.0.2.1") / TCP(dport=443) / Raw(b"12"))
    for length in range(14, len(whole)):
        outcome = program.test_run(whole[:length])
        assert (outcome.retval, outcome.data) == (PASS, whole[:length])
    assert program.test_run(whole).retval in SENT


@pytest.mark.parametrize("length", [0, 19, 39, 60, 0xFFFF])
def test_a_length_that_contradicts_is_passed_and_counted(
    setup: Setup, program: Program, length: int
) -> None:
    """Below the headers', or beyond the frame's end."""
    before = setup.balancer.counters().malformed
    packet = Ether(**LINKS) / IP(src=CLIENT, dst="192.0.2.1", len=length) / TCP(dport=443)
    assert run(program, packet).retval == PASS
    assert setup.balancer.counters().malformed == before + 1


def _sum(octets: bytes) -> int:
    """The one's complement sum of an octet string: 0xffff where its checksum is right."""
    total = 0
    for at in range(0, len(octets), 2):
        total += int.from_bytes(octets[at : at + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
