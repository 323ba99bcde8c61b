"""The UDP clients notice an answer by the wrong process, and one that never comes."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import cast

from sockway.lab.load.harness import Control
from sockway.lab.load.udp import work
from sockway.lab.tally import Outcome, Tally


class _Server(asyncio.DatagramProtocol):
    """Answers as worker 0 until *turn*, then as worker 1; drops every tenth from *drop* on."""

    def __init__(self, *, turn: float, drop: bool) -> None:
        self.turn = turn
        self.drop = drop
        self.seen = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.seen += 1
        if self.drop and self.seen % 10 == 0:
            return
        worker = b"0" if time.monotonic() < self.turn else b"1"
        self.transport.sendto(b"42 1 %s %s" % (worker, data), addr)


async def _measure(*, turn_after: float, drop: bool) -> Tally:
    loop = asyncio.get_running_loop()
    server = _Server(turn=time.monotonic() + turn_after, drop=drop)
    transport, _ = await loop.create_datagram_endpoint(
        lambda: server, ("127.0.0.1", 0), family=socket.AF_INET
    )
    port = transport.get_extra_info("sockname")[1]
    control = Control(time.monotonic())
    loop.call_later(1.0, control.stopping.set)
    task = {"targets": [["127.0.0.1", port]], "flows": 20, "rate": 200, "timeout": 0.2}
    await work(task, control)
    transport.close()
    return control.tally


def test_a_change_of_owner_is_misrouting() -> None:
    """From the moment that another worker answers, every answer is one too many."""
    tally = asyncio.run(_measure(turn_after=0.5, drop=False))
    assert tally.outcomes[Outcome.OK] > 50
    assert tally.outcomes[Outcome.MISROUTED] > 50
    assert not tally.outcomes[Outcome.LOST]


def test_an_answer_that_never_comes_is_a_loss() -> None:
    """A datagram that is dropped on its way is counted, once."""
    tally = asyncio.run(_measure(turn_after=60, drop=True))
    assert tally.outcomes[Outcome.LOST] >= 10
    assert not tally.outcomes[Outcome.MISROUTED]
    assert tally.requests == tally.outcomes[Outcome.LOST] + tally.outcomes[Outcome.OK]
