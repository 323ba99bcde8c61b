from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockway.wire.siphash import key_words, siphash

# Prints what this interpreter makes of messages of every length up to a few words.
_HASHES = """
import json, sys
messages = [bytes(range(n)) for n in range(1, 41)]
print(json.dumps([sys.hash_info.algorithm, [hash(m) for m in messages]]))
"""


def test_agrees_with_the_vector_of_the_paper() -> None:
    """SipHash-2-4 of the paper's appendix A comes out with its numbers of rounds."""
    key0, key1 = key_words(bytes(range(16)))
    digest = siphash(key0, key1, bytes(range(15)), word_rounds=2, final_rounds=4)
    assert digest == 0xA129CA6149BE45E5


def test_agrees_with_the_interpreter() -> None:
    """CPython hashes bytes with SipHash-1-3, and with a zero key when the seed is 0."""
    done = subprocess.run(
        [sys.executable, "-c", _HASHES],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        check=True,
        text=True,
    )
    algorithm, hashes = json.loads(done.stdout)
    assert algorithm == "siphash13"
    for length, expected in enumerate(hashes, start=1):
        digest = siphash(0, 0, bytes(range(length)))
        # hash() is signed, and never -1, which says "error" in C.
        signed = digest - (1 << 64) if digest >> 63 else digest
        assert expected == (-2 if signed == -1 else signed), length


@given(key=st.binary(min_size=16, max_size=16), data=st.binary(max_size=40))
def test_is_64_bits_and_depends_on_the_length(key: bytes, data: bytes) -> None:
    """A digest fits a word, and a zero octet more makes another one."""
    key0, key1 = key_words(key)
    assert 0 <= siphash(key0, key1, data) < 1 << 64
    assert siphash(key0, key1, data) != siphash(key0, key1, data + b"\0")


def test_a_key_is_two_little_endian_words() -> None:
    """The BPF side reads the key as two words of the machine, which is little-endian."""
    assert key_words(b"\1" + bytes(7) + b"\2" + bytes(7)) == (1, 2)


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    """A key that is cut off must not work by chance."""
    with pytest.raises(ValueError, match=f"16 octets, not {length}"):
        key_words(bytes(length))
