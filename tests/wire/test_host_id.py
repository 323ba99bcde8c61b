from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockway.wire.host_id import HOST_LENGTH, HostIds, Owner

KEY = bytes.fromhex("000102030405060708090a0b0c0d0e0f")

keys = st.binary(min_size=16, max_size=16)
lengths = st.integers(8, 20)
workers = st.integers(0, 255)
generations = st.integers(1, 2**32 - 1)


@given(key=keys, length=lengths, generation=generations, worker=workers)
def test_what_is_minted_is_read(key: bytes, length: int, generation: int, worker: int) -> None:
    """An ID of each length names the generation, modulo 256, and the worker that made it."""
    ids = HostIds(key, length)
    connection_id = ids.mint(generation, worker)
    assert len(connection_id) == length
    assert ids.read(connection_id) == Owner(generation % 256, worker)


@given(data=st.data(), length=lengths, generation=generations, worker=workers)
def test_the_prefix_is_the_callers(
    data: st.DataObject, length: int, generation: int, worker: int
) -> None:
    """An ID starts with the prefix given, and the same prefix gives the same ID."""
    prefix = data.draw(st.binary(min_size=length - HOST_LENGTH, max_size=length - HOST_LENGTH))
    ids = HostIds(KEY, length)
    connection_id = ids.mint(generation, worker, prefix)
    assert connection_id[:-HOST_LENGTH] == prefix
    assert connection_id == HostIds(KEY, length).mint(generation, worker, prefix)


@given(length=lengths)
def test_a_prefix_of_chance_is_marked_unroutable(length: int) -> None:
    """The first octet has the rotation bits 0b111 and the length less one, as QUIC-LB wants."""
    first = HostIds(KEY, length).mint(1, 0)[0]
    assert first >> 5 == 0b111
    assert first & 0b11111 == length - 1


def test_vectors() -> None:
    """IDs that both sides, this one and the BPF programs, have to agree on for good."""
    assert HostIds(KEY, 8).mint(1, 0, bytes(3)).hex() == "000000353fc782cb"
    assert (
        HostIds(KEY, 16).mint(0x1FF, 3, bytes(range(11))).hex()
        == "000102030405060708090a2954be1eb8"
    )
    assert (
        HostIds(KEY, 20).mint(7, 255, bytes(range(15))).hex()
        == "000102030405060708090a0b0c0d0e5d673bf1cf"
    )


@pytest.mark.parametrize("length", [8, 16, 20])
def test_one_in_2_to_the_24_passes(length: int) -> None:
    """Behind a prefix, each masked owner has one check of 24 bits: no more can pass."""
    ids = HostIds(KEY, length)
    prefix = random.Random(length).randbytes(length - HOST_LENGTH)
    owners = random.Random(2).sample(range(1 << 16), 4096)
    hosts = [ids.mint(owner >> 8, owner & 255, prefix)[-HOST_LENGTH:] for owner in owners]
    assert len({host[:2] for host in hosts}) == len(owners)
    # 4096 checks of 24 bits: pairs that are equal by chance are 0.5 on average.
    assert len({host[2:] for host in hosts}) > len(owners) - 8


def test_ids_of_chance_are_not_ours() -> None:
    """Of 50,000 random IDs not one passes; 0.003 would be expected."""
    ids = HostIds(KEY)
    chance = random.Random(1)
    assert not [1 for _ in range(50_000) if ids.read(chance.randbytes(16)) is not None]


@pytest.mark.parametrize("length", [8, 11, 13, 16, 20])
def test_a_flipped_bit_is_noticed(length: int) -> None:
    """Any bit of an ID counts: in the prefix, the masked owner or the check."""
    ids = HostIds(KEY, length)
    chance = random.Random(length)
    for _ in range(20):
        prefix = chance.randbytes(length - HOST_LENGTH)
        number = int.from_bytes(ids.mint(chance.randrange(256), chance.randrange(256), prefix))
        for bit in range(8 * length):
            assert ids.read((number ^ 1 << bit).to_bytes(length)) is None


@given(key=keys, other=keys, length=lengths, worker=workers)
def test_another_key_reads_nothing(key: bytes, other: bytes, length: int, worker: int) -> None:
    """Services don't take each other's IDs."""
    connection_id = HostIds(key, length).mint(1, worker)
    assert key == other or HostIds(other, length).read(connection_id) is None


@given(length=lengths, connection_id=st.binary(max_size=24))
def test_any_octets_can_be_read(length: int, connection_id: bytes) -> None:
    """Reading raises nothing and does not mind the length that is minted."""
    HostIds(KEY, length).read(connection_id)
    minted = HostIds(KEY, length).mint(3, 5)
    assert HostIds(KEY, 8).read(minted) == Owner(3, 5)


def test_an_id_that_is_cut_off_is_not_ours() -> None:
    """The length is part of what is checked."""
    ids = HostIds(KEY, 16)
    connection_id = ids.mint(1, 1)
    assert ids.read(connection_id[1:]) is None
    assert ids.read(b"\0" + connection_id) is None


def test_ids_of_one_worker_look_unrelated() -> None:
    """An observer sees no owner: each bit of the host's octets is set about half of the time."""
    ids = HostIds(KEY)
    hosts = [int.from_bytes(ids.mint(1, 1)[-HOST_LENGTH:], "little") for _ in range(2000)]
    for bit in range(8 * HOST_LENGTH):
        assert 800 < sum(host >> bit & 1 for host in hosts) < 1200, bit


@pytest.mark.parametrize("length", [0, 7, 21])
def test_lengths_that_cannot_be_are_refused(length: int) -> None:
    """QUIC has at most 20 octets, and below 8 there is nothing left to vary."""
    with pytest.raises(ValueError, match=f"8 to 20 octets, not {length}"):
        HostIds(KEY, length)


def test_workers_and_prefixes_that_do_not_fit_are_refused() -> None:
    """Nothing is cut to fit: another worker would get the packets."""
    ids = HostIds(KEY, 16)
    with pytest.raises(ValueError, match="0 to 255, not 256"):
        ids.mint(1, 256)
    with pytest.raises(ValueError, match="has 11, not 10"):
        ids.mint(1, 0, bytes(10))
