"""Server IDs that must not count: forged, stale, foreign, of the dead."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sockway.balancer import Balancer, BalancerSpec, frame_of
from sockway.wire.quic_lb import QuicLb, QuicLbConfig

pytestmark = pytest.mark.root

KEY = "8f95f09245765f80256934e50c66207f"
MINE, THEIRS, UNKNOWN = 17, 99, 0x123456
CODEC = QuicLb(QuicLbConfig(0, 3, 13, bytes.fromhex(KEY)))
TCP, UDP = "tcp://192.0.2.1:443", "udp://192.0.2.1:443"


def spec(*, mine: dict[str, Any] | None = None, **more: Any) -> BalancerSpec:
    """Two pools; the first one's VIPs may be stamped."""
    web = {f"web{n}": {"address": f"10.0.0.1{n}", "server_id": MINE + n} for n in range(1, 4)}
    web["web0"] = {"address": "10.0.0.20", "server_id": MINE} | (mine or {})
    return BalancerSpec.model_validate({
        "memory": "none", "history": 0, "stamp": {"kind": 0xB7}, "pool": {
            "web": {"backends": web},
            "dns": {"backends": {"dns1": {"address": "10.0.0.30", "server_id": THEIRS}}},
        },
        "quic_ids": [{"rotation": 0, "nonce_length": 13, "key": KEY}],
        "vip": [
            {"listen": TCP, "pool": "web", "stamps": True},
            {"listen": UDP, "pool": "web", "stamps": True},
            {"listen": "udp://192.0.2.1:53", "pool": "dns", "stamps": True},
            {"listen": "tcp://192.0.2.1:80", "pool": "web"},
        ], **more,
    })  # fmt: skip


@pytest.fixture
def balancer(network: None, bpffs_root: Path) -> Iterator[Balancer]:
    """One with the two pools."""
    del network
    with Balancer.open(spec(), root=bpffs_root) as made:
        made.apply(spec())
        yield made
        made.remove()


def tcp(number: int, port: int = 443, *, kind: int = 0xB7, flags: str = "ack") -> bytes:
    """A packet of TCP with this number in the option."""
    frame = bytearray(frame_of("tcp", "198.51.100.7:40000", f"192.0.2.1:{port}", flags))
    frame[16:18] = struct.pack("!H", 48)
    frame[14 + 20 + 12] = 7 << 4
    return bytes(frame) + struct.pack("!BBIBB", kind, 6, number, 1, 0)


def quic(number: int, port: int = 443) -> bytes:
    """A packet of QUIC with this number in its connection ID."""
    made = CODEC.encode(number.to_bytes(3, "big"))
    return frame_of("udp", "198.51.100.7:40000", f"192.0.2.1:{port}", connection_id=made)


def outcomes(balancer: Balancer, frame: bytes) -> dict[str, int]:
    """What a packet counts in, of all VIPs together."""

    def counted() -> dict[str, int]:
        total: dict[str, int] = {}
        for of_one in balancer.counters().outcomes.values():
            for name, value in of_one.items():
                total[name] = total.get(name, 0) + value
        return total

    before = counted()
    with balancer._state.program("balancer") as program:
        program.test_run(frame)
    return {name: n - before.get(name, 0) for name, n in counted().items() if n != before.get(name)}


@pytest.mark.parametrize("make", [tcp, quic])
def test_ids_of_the_pool_count(balancer: Balancer, make: Any) -> None:
    """Else nothing below would say much."""
    assert outcomes(balancer, make(MINE)) == {"by_stamp": 1}
    assert balancer.explain(make(MINE)).backend == "web0"


@pytest.mark.parametrize("make", [tcp, quic])
@pytest.mark.parametrize("number", [THEIRS, UNKNOWN, 0xFFFFFF, MINE - 1])
def test_forged_and_foreign_ids_fall_through(balancer: Balancer, make: Any, number: int) -> None:
    """Numbers that nobody has, and another pool's: the same as without, and counted."""
    assert outcomes(balancer, make(number)) == {"by_ring": 1, "foreign_stamp": 1}
    plain = frame_of("tcp" if make is tcp else "udp", "198.51.100.7:40000", "192.0.2.1:443")
    assert balancer.explain(make(number)).backend == balancer.explain(plain).backend


def test_the_other_pools_ids_count_there(balancer: Balancer) -> None:
    """And this one's do not."""
    assert outcomes(balancer, quic(THEIRS, 53)) == {"by_stamp": 1}
    assert outcomes(balancer, quic(MINE, 53)) == {"by_ring": 1, "foreign_stamp": 1}


def test_numbers_that_are_no_ids(balancer: Balancer) -> None:
    """0 asks for an ID."""
    assert outcomes(balancer, tcp(0)) == {"by_ring": 1}
    assert outcomes(balancer, quic(0)) == {"by_ring": 1}


@pytest.mark.parametrize("number", [1 << 24 | MINE, MINE << 24, 0xFFFFFFFF])
def test_numbers_of_more_than_24_bits(balancer: Balancer, number: int) -> None:
    """They are nobody's, and counted: a byte order may be the wrong one."""
    assert outcomes(balancer, tcp(number)) == {"by_ring": 1, "foreign_stamp": 1}
    # One number stands for options that contradict.
    assert balancer.explain(tcp(number)).stamp == min(number, 0xFFFFFFFE)


def test_long_server_ids_of_quic(network: None, bpffs_root: Path) -> None:
    """The same for those of more than three octets."""
    del network
    codec = QuicLb(QuicLbConfig(0, 7, 7, None))
    wanted = spec(quic_ids=[{"rotation": 0, "server_id_length": 7, "nonce_length": 7}])
    found = {}
    with Balancer.open(wanted, root=bpffs_root) as balancer:
        balancer.apply(wanted)
        for number in (0, MINE, 1 << 24 | MINE, 0xFFFFFFFF, 1 << 48 | MINE):
            made = codec.encode(number.to_bytes(7, "big"))
            frame = frame_of("udp", "198.51.100.7:40000", "192.0.2.1:443", connection_id=made)
            found[number] = outcomes(balancer, frame)
        balancer.remove()
    assert found.pop(0) == {"by_ring": 1}
    assert found.pop(MINE) == {"by_stamp": 1}
    assert all(each == {"by_ring": 1, "foreign_stamp": 1} for each in found.values())


def test_where_no_stamp_is_read(balancer: Balancer) -> None:
    """Another kind of option, a VIP without stamps, a SYN: whoever opens has no server yet."""
    assert outcomes(balancer, tcp(MINE, kind=0xB6)) == {"by_ring": 1}
    assert outcomes(balancer, tcp(MINE, 80)) == {"by_ring": 1}
    assert outcomes(balancer, tcp(MINE, flags="syn")) == {"by_ring": 1}


@pytest.mark.parametrize("version", [b"\0\0\0\1", b"\x6b\x33\x43\xcf"])
def test_long_headers(balancer: Balancer, version: bytes) -> None:
    """Of the four types, by their names: version 2 has others bits for them (RFC 9369, 3.2)."""
    types = ["Initial", "0-RTT", "Handshake", "Retry"]
    first = {name: bits for bits, name in enumerate(types)}
    if version != b"\0\0\0\1":
        first = {name: (bits + 1) % 4 for name, bits in first.items()}
    own = CODEC.encode(MINE.to_bytes(3, "big"))
    for name, bits in first.items():
        plain = frame_of("udp", "198.51.100.7:40000", "192.0.2.1:443", connection_id=b"")
        head = bytes([0xC0 | bits << 4]) + version + bytes([len(own)]) + own + bytes(30)
        frame = bytearray(plain[: 14 + 28] + head)
        frame[16:18] = struct.pack("!H", 28 + len(head))
        frame[38:40] = struct.pack("!H", 8 + len(head))
        wanted = "by_stamp" if name == "Handshake" else "by_ring"
        assert outcomes(balancer, bytes(frame)) == {wanted: 1}, name


@pytest.mark.parametrize("make", [tcp, quic])
def test_ids_of_the_dead_and_the_gone(balancer: Balancer, make: Any) -> None:
    """A backend that is down, one that drains, one with another ID now, one that has left.

    More of those that left is in `test_leaving_ids.py`.
    """
    balancer.apply(spec(mine={"weight": 0}))
    assert outcomes(balancer, make(MINE)) == {"by_stamp": 1}
    balancer.apply(spec())
    balancer.set_down("web0")
    assert outcomes(balancer, make(MINE)) == {"by_ring": 1, "foreign_stamp": 1}
    balancer.restore("web0")
    assert outcomes(balancer, make(MINE)) == {"by_stamp": 1}
    balancer.apply(spec(mine={"server_id": UNKNOWN}))
    assert outcomes(balancer, make(MINE)) == {"by_ring": 1, "foreign_stamp": 1}
    assert outcomes(balancer, make(UNKNOWN)) == {"by_stamp": 1}
    fewer = spec().model_dump()  # with a history of 0
    del fewer["pool"]["web"]["backends"]["web0"]
    balancer.apply(BalancerSpec.model_validate(fewer))
    for number in (MINE, UNKNOWN):
        assert outcomes(balancer, make(number)) == {"by_ring": 1, "foreign_stamp": 1}


@pytest.mark.parametrize(
    "options",
    [
        struct.pack("!BBIBB", 0xB7, 0, MINE, 1, 0),  # no length
        struct.pack("!BBIBB", 0xB7, 9, MINE, 1, 0),  # over the end of the header
        struct.pack("!BBBBBBBB", 1, 1, 1, 1, 1, 1, 1, 0xB7),  # cut off
    ],
)
def test_options_that_contradict(balancer: Balancer, options: bytes) -> None:
    """They are counted, and the packet goes by the ring."""
    assert outcomes(balancer, tcp(0)[:-8] + options) == {"by_ring": 1, "bad_options": 1}


def test_a_stamped_packet_touches_no_memory(network: None, bpffs_root: Path) -> None:
    """With a table for each flow, only packets that go by the ring leave something in it."""
    del network
    with Balancer.open(spec(memory="table"), root=bpffs_root) as balancer:
        balancer.apply(spec(memory="table"))
        assert outcomes(balancer, tcp(MINE)) == {"by_stamp": 1}
        assert balancer.explain(tcp(MINE)).known is None
        assert outcomes(balancer, tcp(UNKNOWN)).keys() == {"new_flow", "foreign_stamp", "stored"}
        assert outcomes(balancer, tcp(UNKNOWN)).keys() == {"by_table", "foreign_stamp"}
        balancer.remove()
