"""HTTP/3 clients: new connections all the time, and connections that live on.

Task: ``target`` [host, port], ``rate`` (new connections a second, each with one
request), ``clients`` (those at once, at most), ``live`` (connections that stay),
``life`` (seconds until such a one ends and another takes its place), ``pause``
(seconds between its requests), ``live_path`` (what it requests, ``/`` or a download),
``timeout`` (s).

A connection that is not established counts as one failure (handshake), a request
that gets no whole answer as one of its kind. A live connection that breaks counts
with the request it broke under; it is opened anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, ProtocolNegotiated, QuicEvent, StreamReset

from sockway.lab.content import Checker
from sockway.lab.load.exchange import ExchangeError
from sockway.lab.load.harness import Control, run
from sockway.lab.tally import Outcome


@dataclass(frozen=True)
class Task:
    """What the clients of this process do; see the head of this file."""

    target: tuple[str, int]
    rate: float = 10.0
    clients: int = 20
    live: int = 10
    life: float = 8.0
    pause: float = 0.25
    live_path: str = "/"
    timeout: float = 5.0


@dataclass
class _Response:
    done: asyncio.Future[None]
    status: bytes = b""
    body: bytearray = field(default_factory=bytearray)


class Client(QuicConnectionProtocol):
    """One HTTP/3 connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As aioquic makes it."""
        super().__init__(*args, **kwargs)
        self._http: H3Connection | None = None
        self._responses: dict[int, _Response] = {}
        self._ended = False

    async def get(self, authority: str, path: str, wait: float) -> bytes:
        """The body of GET *path*, within *wait* seconds; raises `ExchangeError`."""
        if self._ended:
            raise ExchangeError(Outcome.RESET, "the connection had ended")
        if self._http is None:
            raise ExchangeError(Outcome.HANDSHAKE, "no protocol was negotiated")
        stream = self._quic.get_next_available_stream_id()
        response = _Response(asyncio.get_running_loop().create_future())
        self._responses[stream] = response
        headers = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", authority.encode()),
            (b":path", path.encode()),
        ]
        self._http.send_headers(stream, headers, end_stream=True)
        self.transmit()
        try:
            async with asyncio.timeout(wait):
                await response.done
        except TimeoutError:
            raise ExchangeError(Outcome.TIMEOUT, "response") from None
        finally:
            del self._responses[stream]
        if response.status != b"200":
            raise ExchangeError(Outcome.STATUS, response.status.decode())
        return bytes(response.body)

    def quic_event_received(self, event: QuicEvent) -> None:
        """Feed the HTTP/3 layer, and fail what a lost connection or stream carried."""
        if isinstance(event, ProtocolNegotiated):
            # Now, not with the first request: the server's streams may begin before that.
            self._http = H3Connection(self._quic)
        elif isinstance(event, ConnectionTerminated):
            self._ended = True
            for response in list(self._responses.values()):
                _fail(response, f"connection ended: {event.reason_phrase or event.error_code}")
        elif isinstance(event, StreamReset) and event.stream_id in self._responses:
            _fail(self._responses[event.stream_id], "stream reset")
        if self._http is not None:
            for message in self._http.handle_event(event):
                self._http_event(message)

    def _http_event(self, event: H3Event) -> None:
        if not isinstance(event, HeadersReceived | DataReceived):
            return
        response = self._responses.get(event.stream_id)
        if response is None:
            return
        if isinstance(event, HeadersReceived):
            response.status = dict(event.headers).get(b":status", b"")
        else:
            response.body += event.data
        if event.stream_ended and not response.done.done():
            response.done.set_result(None)


def _fail(response: _Response, words: str) -> None:
    if not response.done.done():
        response.done.set_exception(ExchangeError(Outcome.RESET, words))


class Clients:
    """All clients of the process."""

    def __init__(self, task: Task, control: Control) -> None:
        """Nothing is connected yet."""
        self.task = task
        self.control = control
        self.host, self.port = task.target

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        """A connection; raises `ExchangeError` if it is not established in time."""
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=H3_ALPN,
            verify_mode=ssl.CERT_NONE,
            idle_timeout=3 * self.task.timeout,
        )
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self.task.timeout):
                    protocol = await stack.enter_async_context(
                        connect(
                            self.host,
                            self.port,
                            configuration=configuration,
                            create_protocol=Client,
                        )
                    )
            except (TimeoutError, ConnectionError) as error:
                words = str(error) or type(error).__name__
                raise ExchangeError(Outcome.HANDSHAKE, words) from None
            yield cast("Client", protocol)

    async def _get(self, client: Client, due: float, path: str = "/") -> None:
        body = await client.get("localhost", path, self.task.timeout)
        if path == "/":
            self.control.tally.answered_by[body.split()[1].decode()] += 1
        else:
            checker = Checker()
            checker.feed(body)
            if not checker.intact or not path.startswith(f"/bytes/{len(body)}?"):
                raise ExchangeError(Outcome.CORRUPT, "body")
        self.control.count(Outcome.OK, due)

    def _failed(self, error: ExchangeError, where: str, due: float) -> None:
        self.control.count(error.outcome, due)
        self.control.tally.note(f"{where}: {error}")

    async def short(self, due: float) -> None:
        """Connect, request, close."""
        try:
            async with self._connected() as client:
                await self._get(client, due)
        except ExchangeError as error:
            self._failed(error, "new connection", due)

    async def live(self, number: int) -> None:
        """Connections that live for a while and carry a request now and then."""
        due = time.monotonic() + self.task.pause * number / max(self.task.live, 1)
        # Lives end one after another, not all at once.
        life = self.task.life * (1 + number / max(self.task.live, 1)) / 2
        while await self.control.pause_until(due):
            end = time.monotonic() + life
            life = self.task.life
            try:
                async with self._connected() as client:
                    while time.monotonic() < end and await self.control.pause_until(due):
                        await self._get(client, due, self.task.live_path)
                        due = self.control.skip(due, self.task.pause)
            except ExchangeError as error:
                self._failed(error, "live connection", due)
                due = self.control.skip(due, self.task.pause)

    async def arrivals(self, group: asyncio.TaskGroup) -> None:
        """Start short ones at the asked rate; where all clients are busy, that is counted."""
        running: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while self.task.rate and await self.control.pause_until(due):
            if len(running) < self.task.clients:
                task = group.create_task(self.short(due))
                running.add(task)
                task.add_done_callback(running.discard)
            else:
                self.control.tally.skipped += 1
            due = self.control.skip(due, 1 / self.task.rate)


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Drop what nobody waits for any more: aioquic fails handshakes that were given up."""
    if not isinstance(context.get("exception"), ConnectionError):
        loop.default_exception_handler(context)


async def work(fields: dict[str, Any], control: Control) -> None:
    """Run all clients of this process."""
    clients = Clients(Task(**fields), control)
    asyncio.get_running_loop().set_exception_handler(_unheard)
    async with asyncio.TaskGroup() as group:
        group.create_task(clients.arrivals(group))
        for number in range(clients.task.live):
            group.create_task(clients.live(number))


if __name__ == "__main__":
    run(work)
