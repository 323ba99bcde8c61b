"""Drain helpers for the server's side: keep-alive clients leave by themselves.

Steering new connections away is not enough for those that stay open between requests: a server
that closes an idle one may cross a request that is on its way. So, from the moment that its
generation drains, an application answers each request with `Connection: close` (RFC 9112, section
9.6), and the client comes back on a new connection, which meets the new generation.

    app = ASGIDrain(app)        WSGI: app = WSGIDrain(app)

The generation's state is one octet of a file, mapped into memory: asking costs a load. Outside
`sockway serve` nothing ever drains. HTTP/2 and HTTP/3 know no such header (RFC 9113, section
8.2.2); there the server's own GOAWAY at its graceful stop does this work.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import cache
from typing import Any, Final

VARIABLE: Final = "SOCKWAY_DRAIN"
"""Environment variable with the path of the generation's drain file."""

_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_Application = Callable[[_Scope, _Receive, _Send], Awaitable[None]]

__all__ = ["ASGIDrain", "WSGIDrain", "draining"]


@cache
def _flag(path: str) -> mmap.mmap | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return mmap.mmap(fd, 1, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(fd)


def draining() -> bool:
    """Whether this worker's generation drains."""
    path = os.environ.get(VARIABLE)
    if not path:
        return False
    flag = _flag(path)
    return flag is not None and flag[0] != 0


class ASGIDrain:
    """ASGI middleware: while the generation drains, HTTP/1 responses close their connection."""

    def __init__(self, app: _Application) -> None:
        """Wrap `app`."""
        self._app = app
        draining()  # maps the file now: at the end it may be gone

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Serve one connection's request, as ASGI 3 has it."""
        if scope["type"] != "http" or not str(scope.get("http_version", "1.1")).startswith("1"):
            await self._app(scope, receive, send)
            return

        async def send_and_close(message: _Message) -> None:
            # Asked when the response starts: a drain may have begun since the request came.
            if message["type"] == "http.response.start" and draining():
                headers = [h for h in message.get("headers", ()) if h[0].lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_and_close)


class WSGIDrain:
    """WSGI middleware: while the generation drains, responses close their connection.

    `Connection` is a hop-by-hop header, which PEP 3333 leaves to the server; gunicorn and most
    others take it from the application as meant. Where a server refuses it, its own setting for
    closing connections is the way.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        """Wrap `app`."""
        self._app = app
        draining()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request."""

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            if draining():
                headers = [h for h in headers if h[0].lower() != "connection"]
                headers.append(("Connection", "close"))
            return start_response(status, headers, *rest)

        return self._app(environ, start)
