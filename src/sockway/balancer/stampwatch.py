"""What a server sends on one connection, as it comes in: the options that no socket shows."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from sockway.errors import PermissionDenied

SYN: Final = 0x02
RST: Final = 0x04
ACK: Final = 0x10
_HEADER: Final = 20
_LARGEST: Final = 65_535


@dataclass(frozen=True)
class Seen:
    """A packet of the server's."""

    flags: int
    acknowledged: int
    """Number of the octet that it waits for."""
    options: list[bytes]
    """Each with its kind and length."""


class Watch:
    """Packets of TCP that come from a host, from before the connection on."""

    def __init__(self, family: int, address: tuple[Any, ...]) -> None:
        """Begin.

        Raises:
            PermissionDenied: this process may not look at packets.

        """
        self._family = family
        try:
            self._raw = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
        except PermissionError:
            raise PermissionDenied(
                "can't look at packets: permission denied", hint="run it as root"
            ) from None
        self._raw.setblocking(False)
        self._raw.connect((address[0], 0, *address[2:]))  # nobody else's
        self._port = address[1]
        self._seen: list[Seen] = []

    def packets(self, port: int) -> list[Seen]:
        """All that have come until now, of the connection from this port of ours."""
        with contextlib.suppress(BlockingIOError):
            while True:
                raw = self._raw.recv(_LARGEST)
                tcp = raw[(raw[0] & 15) * 4 :] if self._family == socket.AF_INET else raw
                if tcp[:4] == struct.pack("!HH", self._port, port):
                    self._seen.append(_read(tcp))
        return self._seen

    def __enter__(self) -> Self:
        """Return itself; it ends with the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        self._raw.close()


def _read(tcp: bytes) -> Seen:
    end = (tcp[12] >> 4) * 4
    return Seen(tcp[13], int.from_bytes(tcp[8:12], "big"), list(_options(tcp[_HEADER:end])))


def _options(octets: bytes) -> Iterator[bytes]:
    at = 0
    while at + 1 < len(octets) and octets[at]:
        if octets[at] == 1:
            at += 1
            continue
        size = octets[at + 1]
        if size < 2:  # noqa: PLR2004 - it has at least kind and length
            return
        yield octets[at : at + size]
        at += size


__all__ = ["ACK", "RST", "SYN", "Seen", "Watch"]
