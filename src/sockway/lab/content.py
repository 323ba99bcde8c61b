"""Bytes that both ends can compute, so that a download can be checked as it comes."""

from __future__ import annotations

import hashlib

# A prime length: no power-of-two slip of the stream lands on the same bytes.
_PERIOD = 65521
_BLOCK = hashlib.shake_256(b"sockway lab").digest(_PERIOD)
_TWICE = _BLOCK * 3


def content(offset: int, length: int) -> bytes:
    """*length* bytes of the endless content, from *offset* on; *length* up to 131,042."""
    start = offset % _PERIOD
    if length > 2 * _PERIOD:
        message = f"length {length} is above {2 * _PERIOD}"
        raise ValueError(message)
    return _TWICE[start : start + length]


class Checker:
    """Compares a stream with the content, piece by piece."""

    def __init__(self) -> None:
        """Start at offset 0."""
        self.length = 0
        self.intact = True

    def feed(self, data: bytes) -> None:
        """Compare the next *data*; `intact` is false from the first difference on."""
        view = memoryview(data)
        while view:
            piece = view[:_PERIOD]
            if piece != content(self.length, len(piece)):
                self.intact = False
            self.length += len(piece)
            view = view[len(piece) :]
