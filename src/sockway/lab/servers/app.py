"""The ASGI application of the experiments.

``/``                     who answers: pid, generation, worker
``/bytes/N?seconds=S``    N bytes of known content, spread over S seconds

It is an ordinary application inside `sockway.drain.ASGIDrain`, which is what makes
keep-alive clients leave a draining generation by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from sockway.drain import ASGIDrain
from sockway.lab.content import content
from sockway.lab.servers.identity import identity

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CHUNK = 32_768


async def _respond(send: Send, status: int, length: int) -> None:
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(length).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _stream(send: Send, length: int, seconds: float) -> None:
    """Send *length* bytes at an even pace, on the clock rather than by sleeps that add up."""
    await _respond(send, 200, length)
    loop = asyncio.get_running_loop()
    start = loop.time()
    for offset in range(0, length, CHUNK):
        due = start + seconds * offset / length
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait)
        body = content(offset, min(CHUNK, length - offset))
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def plain_app(scope: Message, receive: Receive, send: Send) -> None:
    """Serve the paths that the head of this file lists, and the lifespan protocol."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path: str = scope["path"]
    if path.startswith("/bytes/"):
        query = parse_qs(scope.get("query_string", b"").decode())
        seconds = float(query.get("seconds", ["0"])[0])
        await _stream(send, int(path.removeprefix("/bytes/")), seconds)
        return
    body = identity().encode()
    await _respond(send, 200, len(body))
    await send({"type": "http.response.body", "body": body})


app = ASGIDrain(plain_app)
