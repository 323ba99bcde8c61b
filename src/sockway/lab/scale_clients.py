"""Clients of the experiment `scale`: they offer a rate, and know which answer is to what.

Each datagram carries the number of the phase in which it was sent, so that answers to a warm-up are
not taken for answers to what is measured, and late ones are not taken for lost.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from sockway.lab.scale_systems import PORT

SIZE: Final = 64
"""Octets of a datagram."""
_SOCKETS: Final = 64
_ADDRESSES: Final = 32
"""Of the VIP's port that each client socket sends to: so many flows."""
_BURST: Final = 256
_QUIET: Final = 0.25
"""Seconds without an answer after which none is expected any more: some periods of the budgets."""
_PHASE: Final = struct.Struct("!I")
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("9I")
"""The last of its numbers is what the socket has dropped (linux/sock_diag.h)."""


@dataclass(frozen=True)
class Phase:
    """What was done in one phase."""

    sent: int
    within: int
    """Answers that came meanwhile, also to what was sent before."""


class Clients:
    """Sends at a rate, and counts answers."""

    def __init__(self) -> None:
        """Open the sockets."""
        self.answered = 0
        """Answers to what was sent in the present phase, or the last one."""
        self._poll = select.poll()
        self._socks: dict[int, socket.socket] = {}
        for _ in range(_SOCKETS):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            self._socks[sock.fileno()] = sock
            self._poll.register(sock, select.POLLIN)
        places = [(f"127.0.0.{number}", PORT) for number in range(1, _ADDRESSES + 1)]
        self._flows = [(sock, place) for place in places for sock in self._socks.values()]
        self._next = 0
        self._number = 0
        self._payload = b""
        self._mark = b""

    def offer(self, rate: float, seconds: float) -> Phase:
        """Send so many datagrams a second for so long, as a phase of its own."""
        self._number += 1
        self._mark = _PHASE.pack(self._number)
        self._payload = self._mark.ljust(SIZE, b"\0")
        self.answered = 0
        start = time.monotonic()
        sent = within = 0
        while (passed := time.monotonic() - start) < seconds:
            due = int(passed * rate) - sent
            for _ in range(min(due, _BURST)):
                if not self._send():
                    break
                sent += 1
            within += self._receive(0 if due > 0 else 1)
        return Phase(sent, within)

    def settle(self, most: float) -> None:
        """Count what comes late, until nothing does any more, for so many seconds at most."""
        end = time.monotonic() + most
        quiet = time.monotonic() + _QUIET
        while time.monotonic() < min(end, quiet):
            if self._receive(20):
                quiet = time.monotonic() + _QUIET

    def dropped(self) -> int:
        """Answers so far for which the clients' own buffers had no room."""
        return sum(
            _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1]
            for sock in self._socks.values()
        )

    def _send(self) -> bool:
        sock, place = self._flows[self._next]
        self._next = (self._next + 1) % len(self._flows)
        try:
            sock.sendto(self._payload, place)
        except BlockingIOError:
            return False
        return True

    def _receive(self, milliseconds: int) -> int:
        count = own = 0
        mark = self._mark
        for descriptor, _ in self._poll.poll(milliseconds):
            recv = self._socks[descriptor].recv
            with contextlib.suppress(BlockingIOError):
                for _ in range(_BURST):
                    own += recv(128).startswith(mark)
                    count += 1
        self.answered += own
        return count

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._socks.values():
            sock.close()


__all__ = ["SIZE", "Clients", "Phase"]
