"""Connection IDs in mvfst's layouts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockway.errors import ConfigError
from sockway.wire.mvfst import LAYOUTS, LENGTH, Mvfst

versions = st.sampled_from(sorted(LAYOUTS))


@pytest.mark.parametrize(
    ("version", "octets", "host", "owner"),
    [
        # Bits as they stand: version, (free), host, worker, process, free.
        (1, 0b01_101010_11001100_11_10000001_1_00000 << 32, 0b101010_11001100_11, (0x81, 1)),
        (2, 0x80_ABCDEF_07_80_0000, 0xABCDEF, (7, 1)),
        (3, 0xFF_12345678_FF_7F_00, 0x12345678, (255, 0)),
    ],
)
def test_where_the_parts_are(version: int, octets: int, host: int, owner: tuple[int, int]) -> None:
    """Written out bit by bit, from the table of their documentation."""
    made = octets.to_bytes(LENGTH, "big")
    found = Mvfst(version).decode(made)
    assert found is not None
    assert int.from_bytes(found, "big") == host
    assert Mvfst(version).owner(made) == owner
    for other in LAYOUTS.keys() - {version}:
        assert Mvfst(other).decode(made) is None
        assert Mvfst(other).owner(made) is None


@given(versions, st.data())
def test_what_was_encoded_is_decoded(version: int, data: st.DataObject) -> None:
    """All numbers that have room."""
    codec = Mvfst(version)
    bits = codec.layout.bits
    host = data.draw(st.integers(0, (1 << bits) - 1)).to_bytes(bits // 8, "big")
    worker, process = data.draw(st.integers(0, 255)), data.draw(st.integers(0, 1))
    made = codec.encode(host, worker, process)
    assert len(made) == LENGTH
    assert codec.decode(made) == host
    assert codec.owner(made) == (worker, process)
    assert codec.decode(made[: (codec.layout.skip + bits) // 8 - 1]) is None


def test_free_bits_are_random() -> None:
    """Two IDs of one worker are not the same."""
    for version in LAYOUTS:
        assert len({Mvfst(version).encode(b"\0\1") for _ in range(8)}) > 1


def test_what_has_no_room_is_refused() -> None:
    """By name, with the room that there is."""
    with pytest.raises(ValueError, match="host ID 65536 does not fit into 16 bits"):
        Mvfst(1).encode(b"\1\0\0")
    with pytest.raises(ValueError, match="worker 256"):
        Mvfst(2).encode(b"\1", worker=256)
    with pytest.raises(ConfigError, match="no layout 4"):
        Mvfst(4)
