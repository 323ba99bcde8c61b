"""Connection IDs that name their server: the draft's examples, every shape, every mistake."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockway.errors import ConfigError
from sockway.wire.host_id import HOST_LENGTH, HostIds
from sockway.wire.quic_lb import (
    MAX_TOGETHER,
    QuicLb,
    QuicLbConfig,
    QuicLbReader,
    feistel,
    unroutable,
)

KEY = bytes.fromhex("fdf726a9893ec05c0632d3956680baf0")

lengths = st.tuples(st.integers(1, 15), st.integers(4, 18)).filter(
    lambda pair: sum(pair) <= MAX_TOGETHER
)
keys = st.one_of(st.none(), st.binary(min_size=16, max_size=16))


def test_the_drafts_worked_example() -> None:
    """Section 5.4.2: server ID 31441a, nonce 9c69c275."""
    codec = QuicLb(QuicLbConfig(0, 3, 4, KEY))
    made = codec.encode(bytes.fromhex("31441a"), bytes.fromhex("9c69c275"))
    assert made.hex() == "0767947d29be054a"
    assert codec.decode(made) == bytes.fromhex("31441a")


VECTORS_KEY = bytes.fromhex("8f95f09245765f80256934e50c66207f")
VECTORS = [
    (0, "c4605e", "4504cc4f", None, "07c4605e4504cc4f"),
    # Misprinted: nonce 3487d970b and ID 20a350d28b4203487d970b, odd numbers of digits. Rotation and
    # length are printed as "2" and "0a" where one octet has both, 2a, and the last octet as "b".
    (1, "350d28b420", "3487d9700b", None, "2a350d28b4203487d9700b"),
    (0, "ed793a", "ee080dbf", VECTORS_KEY, "0720b1d07b359d3c"),
    (1, "ed793a51d49b8f5fab65", "ee080dbf48", VECTORS_KEY, "2fcc381bc74cb4fbad2823a3d1f8fed2"),
    (
        2,
        "ed793a51d49b8f5f",
        "ee080dbf48c0d1e5",
        VECTORS_KEY,
        "504dd2d05a7b0de9b2b9907afb5ecf8cc3",
    ),
    # Misprinted: 12 for the first octet, which is of rotation 0; 3 and 18 octets make 72.
    (
        3,
        "ed793a51d49b8f5fab",
        "ee080dbf48c0d1e55d",
        VECTORS_KEY,
        "725779c9cc86beb3a3a4a3ca96fce4bfe0cdbc",
    ),
]
"""Appendix B of the draft, all of it: rotation, server ID, nonce, key, ID."""


@pytest.mark.parametrize("vector", VECTORS, ids=[each[4] for each in VECTORS])
def test_the_drafts_vectors(vector: tuple[int, str, str, bytes | None, str]) -> None:
    """Appendix B: in clear, three rounds and four, of odd and even lengths, and one block."""
    rotation, server_id, nonce, key, expected = vector
    server, chosen = bytes.fromhex(server_id), bytes.fromhex(nonce)
    # Section 3: three bits of rotation, five of the length of what follows.
    assert int(expected[:2], 16) == rotation << 5 | len(server) + len(chosen)
    codec = QuicLb(QuicLbConfig(rotation, len(server), len(chosen), key))
    assert codec.encode(server, chosen).hex() == expected
    assert codec.decode(bytes.fromhex(expected)) == server


def test_in_clear_the_parts_stand_as_they_are() -> None:
    """First octet: rotation, then the length of what follows."""
    codec = QuicLb(QuicLbConfig(5, 3, 4))
    assert codec.encode(b"abc", b"wxyz") == bytes([5 << 5 | 7]) + b"abcwxyz"


def test_sixteen_octets_are_one_block() -> None:
    """FIPS-197, appendix B: a block and its encryption."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    plain = bytes.fromhex("3243f6a8885a308d313198a2e0370734")
    codec = QuicLb(QuicLbConfig(2, 8, 8, key))
    made = codec.encode(plain[:8], plain[8:])
    assert made[1:].hex() == "3925841d02dc09fbdc118597196a0b32"
    assert codec.decode(made) == plain[:8]


@given(lengths, keys, st.integers(0, 6), st.data())
def test_what_was_encoded_is_decoded(
    pair: tuple[int, int], key: bytes | None, rotation: int, data: st.DataObject
) -> None:
    """Any lengths, with and without key, with octets of the server's own behind."""
    encoding = data.draw(st.booleans())
    config = QuicLbConfig(rotation, *pair, key, self_encoding=encoding)
    codec = QuicLb(config)
    server_id = data.draw(st.binary(min_size=pair[0], max_size=pair[0]))
    own = data.draw(st.binary(max_size=MAX_TOGETHER - config.together))
    made = codec.encode(server_id, own=own)
    assert len(made) == config.length + len(own)
    assert made[0] >> 5 == rotation
    assert not encoding or made[0] & 0x1F == len(made) - 1
    assert made.endswith(own)
    assert codec.decode(made) == server_id


@given(lengths, st.binary(min_size=16, max_size=16), st.data())
def test_each_octet_of_the_nonce_changes_what_is_seen_of_the_server(
    pair: tuple[int, int], key: bytes, data: st.DataObject
) -> None:
    """With 32 values of one octet of the nonce, no octet in the server ID's place stays the same.

    By chance one would for one key in 256^31.
    """
    codec = QuicLb(QuicLbConfig(0, *pair, key))
    server_id = data.draw(st.binary(min_size=pair[0], max_size=pair[0]))
    nonce = bytearray(data.draw(st.binary(min_size=pair[1], max_size=pair[1])))
    at = data.draw(st.integers(0, pair[1] - 1))
    places = []
    for value in range(0, 256, 8):
        nonce[at] = value
        places.append(codec.encode(server_id, bytes(nonce))[1 : 1 + pair[0]])
    assert all(len(set(octets)) > 1 for octets in zip(*places, strict=True))


@given(st.binary(min_size=5, max_size=19), st.binary(min_size=16, max_size=16))
def test_the_network_is_its_own_inverse_backwards(data: bytes, key: bytes) -> None:
    """Rounds 1 to 4, then 4 to 1, give back what was put in."""

    def cipher(block: bytes) -> bytes:
        return bytes(a * 7 + b & 0xFF for a, b in zip(block, key, strict=True))

    assert feistel(cipher, feistel(cipher, data, (1, 2, 3, 4)), (4, 3, 2, 1)) == data


def test_three_configurations_at_once() -> None:
    """A balancer reads each ID by the configuration that made it, and no other."""
    configs = [QuicLbConfig(0, 3, 4), QuicLbConfig(1, 3, 8, KEY), QuicLbConfig(2, 8, 8, KEY)]
    reader = QuicLbReader(configs)
    for config in configs:
        server_id = bytes(range(config.server_id_length))
        assert reader.decode(QuicLb(config).encode(server_id)) == server_id
    for unknown in (b"", b"\x60" + bytes(15), unroutable(16), b"\x07abc"):
        assert reader.decode(unknown) is None


def test_the_hosts_octets_follow() -> None:
    """Server ID for the balancer, generation and worker for the host, in one ID."""
    config = QuicLbConfig(1, 3, 8, KEY)
    ids = HostIds(bytes(16), config.length + HOST_LENGTH)
    prefix = QuicLb(config).encode(b"srv", own=bytes(HOST_LENGTH))[:-HOST_LENGTH]
    made = ids.mint(7, 3, prefix)
    assert QuicLbReader([config]).decode(made) == b"srv"
    assert ids.read(made) == (7, 3)
    assert made[0] & 0x1F == len(made) - 1


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"rotation": 7}, "rotation"),
        ({"rotation": -1}, "rotation"),
        ({"server_id_length": 0}, "server_id_length"),
        ({"server_id_length": 16}, "server_id_length"),
        ({"nonce_length": 3}, "nonce_length"),
        ({"server_id_length": 10, "nonce_length": 10}, "server_id_length + nonce_length"),
        ({"key": b"short"}, "key"),
    ],
)
def test_a_bad_configuration_is_named(values: dict[str, Any], named: str) -> None:
    """The error says which value, and what it can be."""
    defaults: dict[str, Any] = {"rotation": 0, "server_id_length": 3, "nonce_length": 4}
    with pytest.raises(ConfigError, match=named.replace("+", r"\+")) as caught:
        QuicLbConfig(**(defaults | values))
    assert caught.value.hint


def test_two_configurations_of_one_number_are_refused() -> None:
    """An ID could not tell which made it."""
    with pytest.raises(ConfigError, match="rotation 4"):
        QuicLbReader([QuicLbConfig(4, 3, 4), QuicLbConfig(4, 3, 5)])


@pytest.mark.parametrize("length", [0, 21])
def test_an_unroutable_id_has_a_length_that_quic_allows(length: int) -> None:
    """One to twenty octets."""
    with pytest.raises(ValueError, match="1 to 20"):
        unroutable(length)


def test_lengths_that_are_not_the_configurations_are_refused() -> None:
    """A server ID too long would move the nonce."""
    codec = QuicLb(QuicLbConfig(0, 3, 4))
    with pytest.raises(ValueError, match="server ID of 3"):
        codec.encode(b"four")
    with pytest.raises(ValueError, match="20 octets"):
        codec.encode(b"abc", own=bytes(13))
