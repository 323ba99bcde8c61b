"""One HTTP/1.1 connection as a client sees it, with an exact account of how it fails.

A library would hide the difference between "the server closed an idle connection
just as I wrote" and "the server dropped my request half-way". That difference is
what these experiments are about, so this speaks the protocol itself: as much of
HTTP/1.1 (RFC 9112) as the servers of the lab answer with, that is responses with
a Content-Length.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from sockway.lab.tally import Outcome

HEAD_LIMIT = 65_536


class ExchangeError(Exception):
    """A request that got no whole, good response; `outcome` says in which way."""

    def __init__(self, outcome: Outcome, words: str = "") -> None:
        """*words* say more, for the notes of the tally."""
        super().__init__(f"{outcome}: {words}" if words else str(outcome))
        self.outcome = outcome


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time; `connect` opens it."""

    def __init__(self) -> None:
        """Not yet connected."""
        self.open = False
        self.keep = False  # the last response leaves the connection usable
        self.served = 0  # responses got on this connection
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._head = bytearray()
        self._missing = -1  # octets of body to come; -1 while in the head
        self._answered = False  # an octet of the present response has come
        self._sink: Callable[[bytes], None] | None = None

    # --- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a stream's is)
        self._transport = transport
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Take the next octets of a response."""
        if self._waiter is None:
            return self.close()  # nothing was asked: not HTTP any more
        self._answered = True
        if self._missing < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                if len(self._head) > HEAD_LIMIT:
                    self._fail(Outcome.STATUS, "endless header")
                return None
            data = bytes(self._head[end + 4 :])
            if not self._read_head(bytes(self._head[:end])):
                return None
        if len(data) > self._missing:
            self._fail(Outcome.CORRUPT, "longer than its Content-Length")
            return None
        self._missing -= len(data)
        if data and self._sink is not None:
            self._sink(data)
        if not self._missing:
            self.served += 1
            self._finish(None)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request under way, if there is one."""
        self.open = False
        if self._waiter is None:
            return
        if self.served and not self._answered:
            self._fail(Outcome.STALE, type(exc).__name__ if exc else "closed")
        elif isinstance(exc, OSError):
            self._fail(Outcome.RESET, type(exc).__name__)
        else:
            self._fail(Outcome.SHORT, "closed " + ("within" if self._answered else "without"))

    # --- what clients call

    async def connect(self, host: str, port: int, *, timeout: float) -> None:  # noqa: ASYNC109
        """Connect within *timeout* seconds; raises `ExchangeError`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                await loop.create_connection(lambda: self, host, port)
        except TimeoutError:
            raise ExchangeError(Outcome.TIMEOUT, "connect") from None
        except ConnectionRefusedError:
            raise ExchangeError(Outcome.REFUSED) from None
        except ConnectionError as error:
            raise ExchangeError(Outcome.RESET, f"connect {type(error).__name__}") from None
        except OSError as error:
            raise ExchangeError(Outcome.CLIENT, str(error)) from None

    async def exchange(
        self,
        request: bytes,
        sink: Callable[[bytes], None],
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> None:
        """Send *request* and feed the body of its response to *sink*; raises `ExchangeError`."""
        loop = asyncio.get_running_loop()
        self._head.clear()
        self._missing, self._answered, self._sink = -1, False, sink
        waiter = self._waiter = loop.create_future()
        if not self.open or self._transport is None:
            self._fail(Outcome.STALE if self.served else Outcome.SHORT, "closed before")
        else:
            self._transport.write(request)
        timer = loop.call_later(timeout, self._fail, Outcome.TIMEOUT, "response")
        try:
            await waiter
        finally:
            timer.cancel()

    def close(self) -> None:
        """Close the connection."""
        self.open = False
        if self._transport is not None:
            self._transport.close()

    # --- within

    def _read_head(self, head: bytes) -> bool:
        """Take status and length from *head*; False if the request has failed by them."""
        lines = head.split(b"\r\n")
        version, _, status = lines[0].partition(b" ")
        fields: dict[bytes, bytes] = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip()
        if status[:3] != b"200":
            self._fail(Outcome.STATUS, status.decode("latin-1"))
            return False
        if b"content-length" not in fields:
            self._fail(Outcome.STATUS, "no Content-Length")
            return False
        self._missing = int(fields[b"content-length"])
        options = fields.get(b"connection", b"").lower()
        self.keep = version == b"HTTP/1.1" and b"close" not in options
        return True

    def _finish(self, error: ExchangeError | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)

    def _fail(self, outcome: Outcome, words: str) -> None:
        self._finish(ExchangeError(outcome, words))
        if self._transport is not None:
            # An abort is a reset: a failed connection has nothing left to say.
            with contextlib.suppress(OSError):
                self._transport.abort()
        self.open = False
