"""Octets of map elements and constants, from ctypes objects and numbers, and back."""

from __future__ import annotations

import ctypes
from typing import Any

from sockway.errors import KernelError


def plain(size: int) -> Any:
    """The ctypes type for elements that nobody gave a type: a number where one is as wide."""
    kinds: dict[int, Any] = {
        1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64,
    }  # fmt: skip
    return kinds.get(size, ctypes.c_char * size)


def to_bytes(kind: Any, value: Any, size: int, what: str) -> bytes:
    """The octets of a ctypes object or a number, which must be as many as there is room for.

    Args:
        kind: the ctypes type that a number becomes.
        value: what is to be written.
        size: octets.
        what: the name of the place, for the error.

    Raises:
        KernelError: they are more or fewer.

    """
    if isinstance(value, int):
        number, value = value, kind(value)
        if isinstance(value, ctypes._SimpleCData) and value.value != number:  # noqa: SLF001
            # ctypes would cut it off without a word.
            raise KernelError(f"{number} does not fit into the {size} octets of {what}")
    raw = bytes(value)
    if len(raw) != size:
        raise KernelError(f"{len(raw)} octets where {what} has {size}")
    return raw


def from_bytes(kind: Any, raw: bytes) -> Any:
    """A ctypes object from octets; the number itself where it is one."""
    made = kind.from_buffer_copy(raw)
    return made.value if isinstance(made, ctypes._SimpleCData) else made  # noqa: SLF001
