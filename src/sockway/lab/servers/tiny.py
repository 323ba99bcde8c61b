"""A small HTTP/1.1 server that starts in a tenth of a second: for many releases in a row.

It does what a server under release has to do, and no more: on SIGTERM it stops
accepting, answers what it has already, and goes. Run it as
``python -m sockway.lab.servers.tiny``.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

from sockway.drain import draining
from sockway.lab.content import content
from sockway.lab.servers.identity import identity, inherited_sockets, notify_ready

CHUNK = 32_768


class Server:
    """Connections are served one request after another until the client or SIGTERM ends them."""

    def __init__(self) -> None:
        """No connection yet."""
        self.stopping = asyncio.Event()
        self.idle: set[asyncio.StreamWriter] = set()
        self.connections: set[asyncio.Task[None]] = set()

    async def _body(self, writer: asyncio.StreamWriter, target: str, *, close: bool) -> None:
        """Write the response to *target*, paced if it asks for that."""
        path, _, query = target.partition("?")
        if path.startswith("/bytes/"):
            length = int(path.removeprefix("/bytes/"))
            seconds = float(query.removeprefix("seconds=") or 0)
        else:
            length, seconds = 0, 0.0
        body = identity().encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n"
            % (length or len(body), b"Connection: close\r\n" if close else b"")
        )
        if not length:
            writer.write(body)
        loop = asyncio.get_running_loop()
        start = loop.time()
        for offset in range(0, length, CHUNK):
            if (wait := start + seconds * offset / length - loop.time()) > 0:
                await asyncio.sleep(wait)
            writer.write(content(offset, min(CHUNK, length - offset)))
            await writer.drain()
        await writer.drain()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (start_server made it)
        self.connections.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not self.stopping.is_set():
                self.idle.add(writer)
                head = await reader.readuntil(b"\r\n\r\n")
                self.idle.discard(writer)
                target = head.split(b" ", 2)[1].decode()
                close = b"connection: close" in head.lower() or draining()
                await self._body(writer, target, close=close or self.stopping.is_set())
                if close:
                    break
        self.idle.discard(writer)
        self.connections.discard(task)
        writer.close()

    async def run(self, sockets: list[socket.socket]) -> None:
        """Listen on these, say so, and serve until SIGTERM."""
        servers = [
            await asyncio.start_server(self.serve, sock=sock, backlog=4096) for sock in sockets
        ]
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        notify_ready()
        print("tiny ready", flush=True)  # noqa: T201 (that line is what the parent waits for)
        await self.stopping.wait()
        for server in servers:
            server.close()
        # What was accepted a moment ago gets its first read before idle ones are closed.
        await asyncio.sleep(0.05)
        for writer in self.idle:
            writer.close()
        if self.connections:
            await asyncio.wait(self.connections, timeout=60)


if __name__ == "__main__":
    asyncio.run(Server().run(inherited_sockets()))
