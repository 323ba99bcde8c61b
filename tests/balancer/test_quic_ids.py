"""QUIC connection IDs that name their server, read by the program in force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sockway.balancer import Balancer, BalancerSpec, frame_of, read
from sockway.balancer.config import problems
from sockway.balancer.diagnosis import diagnose
from sockway.balancer.plan import changes
from sockway.balancer.spec import QuicIdSpec
from sockway.errors import ConfigError, SockwayError
from sockway.kernel.features import Feature
from sockway.wire.host_id import HOST_LENGTH
from sockway.wire.quic_lb import QuicLb, unroutable

VIP = "udp://192.0.2.1:443"
BACKENDS = {f"web{n}": {"address": f"10.0.0.1{n}", "server_id": 0x30 + n} for n in range(1, 9)}
ONE = {"rotation": 0, "nonce_length": 4, "key": "fdf726a9893ec05c0632d3956680baf0"}
TWO = {"rotation": 3, "nonce_length": 13, "key": "8f95f09245765f80256934e50c66207f"}
THREE: dict[str, Any] = {"rotation": 5, "nonce_length": 6}


def spec(*quic_ids: dict[str, Any], **more: Any) -> BalancerSpec:
    """Eight backends behind one VIP."""
    return BalancerSpec.model_validate({
        "memory": "none", "quic_ids": quic_ids, "pool": {"web": {"backends": BACKENDS}},
        "vip": [{"listen": VIP, "pool": "web", "stamps": True}], **more,
    })  # fmt: skip


@pytest.fixture
def balancer(network: None, bpffs_root: Path) -> Iterator[Balancer]:
    """One that reads a configuration of IDs."""
    del network
    with Balancer.open(spec(ONE), root=bpffs_root) as made:
        made.apply(spec(ONE))
        yield made
        made.remove()


def minted(of: dict[str, Any], number: int, own: bytes = b"") -> bytes:
    """An ID of a configuration that leads to a backend."""
    codec = QuicIdSpec.model_validate(of).codec()
    assert isinstance(codec, QuicLb)
    return codec.encode((0x30 + number).to_bytes(3, "big"), own=own)


def led_to(balancer: Balancer, connection_id: bytes) -> str | None:
    """The backend of a packet with this ID; None if it goes by the ring."""
    found = balancer.explain(
        frame_of("udp", "198.51.100.7:40000", "192.0.2.1:443", connection_id=connection_id)
    )
    return found.backend if found.outcome == "by_stamp" else None


pytestmark = pytest.mark.root


def test_three_configurations_take_turns(balancer: Balancer) -> None:
    """IDs of each time lead to their backends until their configuration is taken out, no longer."""
    ids = {
        name: [(minted(of, n, own), f"web{n}") for n in range(1, 9) for own in (b"", bytes(2))]
        for name, of in (("one", ONE), ("two", TWO), ("three", THREE))
    }
    for configured, known in (
        ((ONE,), {"one"}),
        ((ONE, TWO), {"one", "two"}),
        ((ONE, TWO, THREE), {"one", "two", "three"}),
        ((TWO, THREE), {"two", "three"}),
        ((THREE,), {"three"}),
    ):
        balancer.apply(spec(*configured))
        for name, made in ids.items():
            expected = [owner if name in known else None for _, owner in made]
            assert [led_to(balancer, each) for each, _ in made] == expected


def test_a_key_that_changes_reads_nothing_of_the_old(balancer: Balancer) -> None:
    """With one rotation number for two keys, IDs of the old one lead nowhere, by chance at most."""
    old = [minted(ONE, n) for n in range(1, 9)]
    changed = ONE | {"key": "00112233445566778899aabbccddeeff"}
    balancer.apply(spec(changed))
    assert [led_to(balancer, each) for each in old] == [None] * 8
    assert led_to(balancer, minted(changed, 5)) == "web5"


def test_a_configuration_that_fails_leaves_the_old_one(balancer: Balancer) -> None:
    """Nothing is half applied."""
    made = minted(ONE, 3)
    with pytest.raises(SockwayError, match="nowhere0"):
        balancer.apply(spec(TWO, interfaces=["nowhere0"]))
    assert led_to(balancer, made) == "web3"
    assert led_to(balancer, minted(TWO, 3)) is None


def test_mvfst_servers_behind_it(balancer: Balancer) -> None:
    """Their three layouts, at once, beside QUIC-LB."""
    balancer.apply(spec(ONE, *({"layout": f"mvfst-{version}"} for version in (1, 2, 3))))
    for version in (1, 2, 3):
        codec = QuicIdSpec.model_validate({"layout": f"mvfst-{version}"}).codec()
        for number in range(1, 9):
            server = (0x30 + number).to_bytes(2, "big")
            assert led_to(balancer, codec.encode(server)) == f"web{number}"
    assert led_to(balancer, minted(ONE, 4)) == "web4"


def test_the_third_layout_takes_unroutable_ids_and_has_more_hosts_than_server_ids(
    balancer: Balancer,
) -> None:
    """Its two bits are those of rotations 6 and 7; a host ID of 25 bits is nobody's."""
    made = bytes([7 << 5 | 7, 0, 0, 0, 0x33]) + unroutable(8)[5:]
    assert led_to(balancer, made) is None
    balancer.apply(spec(ONE, {"layout": "mvfst-3"}))
    assert led_to(balancer, made) == "web3"
    codec = QuicIdSpec.model_validate({"layout": "mvfst-3"}).codec()
    for host in (1 << 24 | 0x33, 1 << 31 | 0x33):
        assert led_to(balancer, codec.encode(host.to_bytes(4, "big"))) is None


def test_ids_with_octets_of_the_hosts_router(balancer: Balancer) -> None:
    """What follows server ID and nonce does not matter to a balancer."""
    for number in range(1, 9):
        assert led_to(balancer, minted(ONE, number, bytes(HOST_LENGTH))) == f"web{number}"


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"rotation": 7}, "less than or equal to 6"),
        ({"nonce_length": 4}, "quic-lb needs a rotation"),
        ({"rotation": 0, "key": "00"}, "32 hexadecimal digits"),
        ({"rotation": 0, "key": "0" * 32}, "a key needs nonce_length"),
        ({"rotation": 0, "server_id_length": 4, "nonce_length": 16}, "19 together"),
        ({"layout": "mvfst-1", "rotation": 1}, "mvfst-1 has no rotation"),
        ({"layout": "mvfst-4"}, "mvfst-3"),
    ],
)
def test_what_can_not_be_read_is_refused(field: dict[str, Any], words: str) -> None:
    """Each with what is wrong."""
    with pytest.raises(ValueError, match=words):
        QuicIdSpec.model_validate(field)


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ({"rotation": 1}, {"rotation": 1}, True),
        ({"rotation": 1}, {"rotation": 2}, False),
        ({"rotation": 4}, {"layout": "mvfst-2"}, True),
        ({"rotation": 4}, {"layout": "mvfst-3"}, False),
        ({"rotation": 6}, {"layout": "mvfst-3"}, True),
        ({"layout": "mvfst-1"}, {"layout": "mvfst-1"}, True),
    ],
)
def test_configurations_that_can_not_be_told_apart(
    one: dict[str, Any], other: dict[str, Any], *, clash: bool
) -> None:
    """Their IDs would begin with the same three bits."""
    found = list(problems(spec(one, other)))
    assert [where for where, _, _ in found] == ([("quic_ids", 1)] if clash else [])
    for _, _, hint in found:
        for version in (1, 2, 3):
            begins = sorted(QuicIdSpec.model_validate({"layout": f"mvfst-{version}"}).starts)
            assert f"{begins[0]} and {begins[1]}" in hint.partition(f"mvfst-{version}")[2][:16]


def test_keys_are_not_shown() -> None:
    """Neither what changes nor what is wrong has a key in it."""
    other = ONE | {"key": "00112233445566778899aabbccddeeff"}
    told = " ".join(str(each) for each in changes(spec(ONE), spec(other, TWO)))
    assert told == "~ quic_ids, rotation 0: key (hidden) -> (hidden) + quic_ids, rotation 3"
    text = f"[[quic_ids]]\nrotation = 0\nkey = '{other['key']}'"
    with pytest.raises(ConfigError, match="needs nonce_length") as caught:
        read(text)
    assert str(other["key"]) not in str(caught.value)
    assert str(other["key"]) not in repr(spec(other))


def test_the_doctor_says_how_ids_are_read(balancer: Balancer, bpffs_root: Path) -> None:
    """And that none are, if no VIP has stamps."""
    long = {"rotation": 6, "server_id_length": 7, "nonce_length": 4, "key": "00" * 16}
    whole = spec(ONE, TWO, THREE, long)
    balancer.apply(whole)

    def finding() -> Feature:
        return next(f for f in diagnose(bpffs_root) if f.name.endswith("connection IDs"))

    assert finding().ok
    assert finding().detail == (
        "rotation 0 by AES in the program (3 blocks), rotation 3 by AES in the program (1 block), "
        "rotation 5 in clear, rotation 6 by AES in the program (4 blocks)"
    )
    balancer.apply(spec(ONE, vip=[{"listen": VIP, "pool": "web"}]))
    assert not finding().ok
    assert "stamps = true" in finding().remedy
