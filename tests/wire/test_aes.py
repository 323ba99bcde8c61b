"""Round keys of AES-128: the standard's own examples."""

from __future__ import annotations

import pytest

from sockway.wire.aes import decryption_keys, encryption_keys

KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")


def test_the_standards_key_schedule() -> None:
    """FIPS 197, appendix A.1: the first word of each round, and the last of all."""
    words = encryption_keys(KEY)
    assert len(words) == 44
    assert [f"{word:08x}" for word in words[::4]] == [
        "2b7e1516", "a0fafe17", "f2c295f2", "3d80477d", "ef44a541", "d4d1c6f8", "6d88a37a",
        "4e54f70e", "ead27321", "ac7766f3", "d014f9a8",
    ]  # fmt: skip
    assert words[-1] == 0xB6630CA6


def test_the_equivalent_inverse_cipher_begins_at_the_end() -> None:
    """FIPS 197, appendix C.1: ik_sch of round 0 and 10 are the last and the first round's keys."""
    key = bytes(range(16))
    forth, back = encryption_keys(key), decryption_keys(key)
    assert back[:4] == forth[40:]
    assert back[40:] == forth[:4]
    # ik_sch of round 1, from the same appendix.
    assert [f"{word:08x}" for word in back[4:8]] == [
        "13aa29be", "9c8faff6", "f770f580", "00f7bf03",
    ]  # fmt: skip


def test_other_lengths_are_refused() -> None:
    """AES-256's keys are none of these."""
    with pytest.raises(ValueError, match="16 octets, not 32"):
        encryption_keys(bytes(32))
