"""Clients that are held up: waiting counts from when a request was due; what is skipped is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any, cast

import pytest

from sockway.lab.load import http1, http3, udp
from sockway.lab.load.exchange import Connection
from sockway.lab.load.harness import BEHIND_SECONDS, Control
from sockway.lab.load.udp import TICK, Schedule
from sockway.lab.tally import Outcome, Tally

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n1 2 3"
STALL = 0.6


class _Echo(asyncio.DatagramProtocol):
    """Answers each datagram so much later."""

    def __init__(self, delay: float) -> None:
        self.delay = delay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self.delay, self.transport.sendto, b"42 1 0 " + data, addr)


async def _udp(delay: float, **task: Any) -> Tally:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Echo(delay), ("127.0.0.1", 0), family=socket.AF_INET
    )
    port = transport.get_extra_info("sockname")[1]
    control = Control(time.monotonic())
    loop.call_later(1.0, control.stopping.set)
    await udp.work({"targets": [["127.0.0.1", port]], "flows": 40, **task}, control)
    transport.close()
    return control.tally


def test_datagrams_that_can_not_be_sent_are_told() -> None:
    """Ten may be under way at once, each takes a fifth of a second: 50 of 200 can be had."""
    tally = asyncio.run(_udp(0.2, rate=200, window=10))
    assert tally.failed == 0
    assert tally.requests < 80
    assert tally.due == pytest.approx(200, abs=10)
    # They wait for their turn: the last ones of those sent, for their answers still.
    assert tally.latency.quantile(0.99) > 0.2 + 2 * TICK


def test_with_nothing_in_the_way_nothing_is_skipped() -> None:
    """And nothing is late but by what a loaded machine takes."""
    tally = asyncio.run(_udp(0.0, rate=200))
    assert tally.skipped <= 10
    assert tally.requests > 100


def test_each_datagram_has_its_tick() -> None:
    """Due is what a tick finds due; what is too much to be made up for is left out, and counted."""
    schedule = Schedule(1000.0, 50.0)
    assert schedule.take(50.004) is None
    assert [schedule.take(50.005) for _ in range(6)] == [pytest.approx(50.005)] * 5 + [None]
    assert schedule.next_tick(50.005) == pytest.approx(50.010)
    assert schedule.skip(51.0, 10) == 995 - 10
    assert [schedule.take(51.0) for _ in range(11)] == [pytest.approx(51.0, abs=0.006)] * 10 + [
        None
    ]


async def _http(stall: float, **task: Any) -> Tally:
    """One request after the other; the fifth answer comes so late."""
    served = 0
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await reader.readuntil(b"\r\n\r\n")
        served += 1
        if served == 5:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(stall):
                    await over.wait()
        writer.write(GOOD)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    control = Control(time.monotonic())
    asyncio.get_running_loop().call_later(stall + 1.0, control.stopping.set)
    async with server:
        await http1.work({"targets": [["127.0.0.1", port]], **({"rate": 20} | task)}, control)
        over.set()
        await asyncio.sleep(0.05)
    return control.tally


def test_who_waits_behind_a_slow_answer_waits() -> None:
    """One client, a request each twentieth of a second: a dozen wait for the one that is slow."""
    tally = asyncio.run(_http(STALL, clients=1))
    assert tally.failed == 0
    slow = sum(
        count for bucket, count in tally.latency.buckets.items() if 1.02**bucket / 1e6 > STALL / 4
    )
    assert slow >= 5
    assert tally.skipped == 0
    assert tally.due == pytest.approx(20 * (STALL + 1), abs=4)


def test_what_a_client_can_not_make_up_for_is_skipped() -> None:
    """More than a second behind: then it goes on from there, and the rest is told."""
    stall = BEHIND_SECONDS + 1.0
    tally = asyncio.run(_http(stall, clients=1))
    assert tally.skipped == pytest.approx(20 * (stall - BEHIND_SECONDS), abs=6)
    assert tally.due == pytest.approx(20 * (stall + 1), abs=6)


def test_a_timeout_is_of_connection_and_answer_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure belongs to the moment at which the request was due, not to that of its end."""
    connect = Connection.connect

    async def slowly(*args: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0.4)
        await connect(*args, **kwargs)

    monkeypatch.setattr(Connection, "connect", slowly)
    tally = asyncio.run(_http(3.0, clients=1, timeout=0.6, rate=2))
    assert tally.outcomes[Outcome.TIMEOUT] == 1
    (begun,) = tally.begun[Outcome.TIMEOUT]
    (ended,) = tally.bins[Outcome.TIMEOUT]
    assert 5 <= ended - begun <= 8


def test_connections_for_which_there_is_no_client_are_told() -> None:
    """All clients are busy, for there are none: each that was due is skipped."""

    async def arrive() -> Tally:
        control = Control(time.monotonic())
        asyncio.get_running_loop().call_later(1.0, control.stopping.set)
        await http3.work({"target": ["::1", 9], "rate": 20, "clients": 0, "live": 0}, control)
        return control.tally

    tally = asyncio.run(arrive())
    assert tally.requests == 0
    assert tally.skipped == pytest.approx(20, abs=3)
