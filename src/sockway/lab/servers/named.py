"""A server that says who it is: ``python -m sockway.lab.servers.named NAME PLACE ...``.

A place is ``ADDRESS:PORT``; ``h3=ADDRESS:PORT`` serves HTTP/3 and nothing else.

Each line on a TCP connection, and each datagram, is answered with the name and what was sent; a
line ``GET ...`` with an HTTP response, after which the connection ends. A line ``SEND n`` is
answered with so many octets.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import cast

from sockway.lab.marks import prefix

BACKLOG = 4096
LONGEST_LINE = 1 << 20


class Datagrams(asyncio.DatagramProtocol):
    """Answers datagrams."""

    def __init__(self, name: bytes) -> None:
        """Take the name to answer with."""
        self._name = name
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers are sent by."""
        # Python 3.11's is none of the class that it implements.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer."""
        if self._transport:
            self._transport.sendto(self._name + b" " + data, addr)


async def _converse(
    name: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while line := await reader.readline():
            if line.startswith(b"GET "):
                while (await reader.readline()).strip():
                    pass
                head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                writer.write(head % len(name) + name)
                await writer.drain()
                break
            if line.startswith(b"SEND "):
                writer.write(b"x" * int(line.split()[1]))
            else:
                writer.write(name + b" " + line)
            await writer.drain()
    writer.close()


async def serve(
    name: bytes, endpoints: list[tuple[str, int]], http3: list[tuple[str, int]]
) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, done.set)
    if http3:
        # Here, for it takes longer to import than all else together.
        from sockway.lab.servers.named_http3 import serve_http3  # noqa: PLC0415

        with tempfile.TemporaryDirectory(prefix=prefix()) as directory:
            await serve_http3(name, http3, Path(directory))
    for host, port in endpoints:
        await asyncio.start_server(
            lambda reader, writer: _converse(name, reader, writer),
            host,
            port,
            backlog=BACKLOG,
            limit=LONGEST_LINE,
        )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        await loop.create_datagram_endpoint(
            lambda: Datagrams(name), local_addr=(host, port), family=family
        )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await done.wait()


def main() -> None:
    """Read the command line."""
    name, *places = sys.argv[1:]
    http3 = [place.removeprefix("h3=") for place in places if place.startswith("h3=")]
    plain = [place for place in places if not place.startswith("h3=")]
    asyncio.run(serve(name.encode(), [*map(_endpoint, plain)], [*map(_endpoint, http3)]))


def _endpoint(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    main()
