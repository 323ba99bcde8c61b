"""Middleware for ASGI applications."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sockway.drain import hypercorn
from sockway.drain.flag import draining

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_CLOSE = (b"connection", b"close")


class ASGIDrain:
    """Ask clients to leave, response by response, once this process's generation drains.

    Wrap the application from outside all other middleware: servers differ in what they need to
    be told, and the server's own `send` has to be in reach.

    Args:
        app: the ASGI 3 application.

    """

    def __init__(self, app: Application) -> None:
        """Wrap `app`."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope; other types than `http` pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif str(scope.get("http_version", "1.1")).startswith("1"):
            await self.app(scope, receive, _closing(send))
        else:
            await self.app(scope, receive, send)
            # HTTP/2 and 3 forbid the header (RFC 9113, section 8.2.2); there it is a GOAWAY.
            if draining():
                await hypercorn.go_away(send)


def _closing(send: Send) -> Send:
    """A `send` that adds the header if the generation drains when the response starts."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start" and draining():
            headers = [h for h in message.get("headers", ()) if bytes(h[0]).lower() != _CLOSE[0]]
            message = {**message, "headers": [*headers, _CLOSE]}
        await send(message)

    return closing
