"""QUIC connection IDs as mvfst lays them out, versions 1 to 3.

The first two bits of an ID are the version of its layout. A balancer reads the host's ID; worker
and process (the old or the new one of a release) are the host's business:

| version | host ID | worker | process |
| --- | --- | --- | --- |
| 1 | bits 2 to 17 | bits 18 to 25 | bit 26 |
| 2 | bits 8 to 31 | bits 32 to 39 | bit 40 |
| 3 | bits 8 to 39 | bits 40 to 47 | bit 48 |

All other bits are random. Source: facebook/mvfst, `quic/codec/DefaultConnectionIdAlgo.h`; what
balancers read of it: facebookincubator/katran, `katran/lib/bpf/pckt_parsing.h`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from sockway.errors import ConfigError

LENGTH: Final = 8
"""Octets of an ID, as mvfst's servers make them."""

_BITS: Final = 8 * LENGTH
_WORKER_BITS: Final = 8


@dataclass(frozen=True)
class MvfstLayout:
    """Where the host ID is."""

    skip: int
    """Bits before it."""
    bits: int
    """Of it."""


LAYOUTS: Final = {1: MvfstLayout(2, 16), 2: MvfstLayout(8, 24), 3: MvfstLayout(8, 32)}


class Mvfst:
    """Makes and reads the IDs of one version."""

    def __init__(self, version: int) -> None:
        """Take the version.

        Raises:
            ConfigError: there is no such version.

        """
        if version not in LAYOUTS:
            raise ConfigError(f"mvfst has no layout {version}", hint="it can be 1, 2 or 3")
        self.version = version
        self.layout = LAYOUTS[version]

    def encode(self, server_id: bytes, worker: int = 0, process: int = 0) -> bytes:
        """An ID of 8 octets that leads to a host, and there to a worker and a process.

        Raises:
            ValueError: a number that has no room; it names the number and the room.

        """
        host = int.from_bytes(server_id, "big")
        for name, value, bits in (
            ("host ID", host, self.layout.bits),
            ("worker", worker, _WORKER_BITS),
            ("process", process, 1),
        ):
            if not 0 <= value < 1 << bits:
                message = f"{name} {value} does not fit into {bits} bits"
                raise ValueError(message)
        end = self.layout.skip + self.layout.bits
        word = self.version << 62 | host << _BITS - end
        word |= worker << _BITS - end - _WORKER_BITS | process << _BITS - end - _WORKER_BITS - 1
        free = secrets.randbits(self.layout.skip - 2) << 56 if self.layout.skip > 2 else 0  # noqa: PLR2004
        free |= secrets.randbits(_BITS - end - _WORKER_BITS - 1)
        return (word | free).to_bytes(LENGTH, "big")

    def decode(self, connection_id: bytes) -> bytes | None:
        """The host ID in an ID, as octets; None if it is of another version or too short."""
        end = self.layout.skip + self.layout.bits
        if 8 * len(connection_id) < end or connection_id[0] >> 6 != self.version:
            return None
        value = int.from_bytes(connection_id, "big") >> 8 * len(connection_id) - end
        value &= (1 << self.layout.bits) - 1
        return value.to_bytes((self.layout.bits + 7) // 8, "big")

    def owner(self, connection_id: bytes) -> tuple[int, int] | None:
        """Worker and process in an ID; None if it is of another version or too short."""
        end = self.layout.skip + self.layout.bits + _WORKER_BITS + 1
        if 8 * len(connection_id) < end or connection_id[0] >> 6 != self.version:
            return None
        value = int.from_bytes(connection_id, "big") >> 8 * len(connection_id) - end
        return value >> 1 & 0xFF, value & 1


__all__ = ["LAYOUTS", "LENGTH", "Mvfst", "MvfstLayout"]
