"""The HTTP client tells apart every way in which a server can fail it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from sockway.lab.load.exchange import Connection, ExchangeError
from sockway.lab.tally import Outcome

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
REQUEST = b"GET / HTTP/1.1\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset instead of a FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def _reset_unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    _reset(writer)


async def _close_unanswered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def _close_half_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(GOOD[:-1])
    writer.close()


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")


async def _say_too_much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(GOOD + b"!!")


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def _close_after_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(GOOD)
    await reader.readuntil(b"\r\n\r\n")
    _reset(writer)


async def _outcomes(serve: Serve, requests: int) -> list[Outcome]:
    """The outcomes of *requests* on one connection to a server that does *serve*."""
    done = asyncio.Event()

    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)
        await done.wait()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve_and_close, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = Connection()
    outcomes = []
    async with server:
        await connection.connect("127.0.0.1", port, timeout=2)
        for _ in range(requests):
            try:
                await connection.exchange(REQUEST, bytearray().extend, timeout=0.5)
                outcomes.append(Outcome.OK)
            except ExchangeError as error:
                outcomes.append(error.outcome)
        connection.close()
        done.set()
        await asyncio.sleep(0.05)
    return outcomes


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        (_reset_unread, [Outcome.RESET]),
        (_close_unanswered, [Outcome.SHORT]),
        (_close_half_way, [Outcome.SHORT]),
        (_refuse, [Outcome.STATUS]),
        (_say_too_much, [Outcome.CORRUPT]),
        (_say_nothing, [Outcome.TIMEOUT]),
        (_close_after_one, [Outcome.OK, Outcome.STALE]),
    ],
)
def test_failures_are_told_apart(serve: Serve, expected: list[Outcome]) -> None:
    """Each way in which a server fails a request has its name."""
    assert asyncio.run(_outcomes(serve, len(expected))) == expected


def test_a_refused_connection_is_counted_as_such() -> None:
    """Nobody listens: refused, not reset."""

    async def connect() -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        await Connection().connect("127.0.0.1", port, timeout=2)

    with pytest.raises(ExchangeError) as caught:
        asyncio.run(connect())
    assert caught.value.outcome is Outcome.REFUSED
