"""An ASGI application for the servers of these examples (uvicorn, hypercorn, granian).

`/` tells who answers; `/slow?seconds=S` answers after so long; `/bytes/N` sends N octets, slowly
with `/bytes/N?seconds=S`. In `ASGIDrain`, so that keep-alive clients leave a draining generation.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from sockway.drain import ASGIDrain

CHUNK = 16 * 1024

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def plain(scope: Message, receive: Receive, send: Send) -> None:
    """Answer a request (ASGI 3)."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    if scope["type"] != "http":
        return
    path: str = scope["path"]
    query = parse_qs(scope["query_string"].decode())
    seconds = float(query.get("seconds", ["0"])[0])
    if path == "/":
        await answer(send, 200, who())
    elif path == "/slow":
        await asyncio.sleep(seconds)
        await answer(send, 200, who())
    elif path.startswith("/bytes/") and path.removeprefix("/bytes/").isdigit():
        await download(send, int(path.removeprefix("/bytes/")), seconds)
    else:
        await answer(send, 404, {"error": f"no such path: {path}"})


def who() -> dict[str, Any]:
    """The process, and its place in the service."""
    return {
        "pid": os.getpid(),
        "generation": int(os.environ.get("SOCKWAY_GENERATION", "0")),
        "worker": int(os.environ.get("SOCKWAY_WORKER", "0")),
    }


async def lifespan(receive: Receive, send: Send) -> None:
    """Say that the application is up, and down."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def answer(send: Send, status: int, document: dict[str, Any]) -> None:
    """Send a JSON document."""
    body = json.dumps(document).encode()
    await start(send, status, b"application/json", len(body))
    await send({"type": "http.response.body", "body": body})


async def download(send: Send, size: int, seconds: float) -> None:
    """Send so many octets, in about so many seconds."""
    await start(send, 200, b"application/octet-stream", size)
    left = size
    while left > 0:
        chunk = min(CHUNK, left)
        left -= chunk
        await send({"type": "http.response.body", "body": bytes(chunk), "more_body": True})
        await asyncio.sleep(seconds * chunk / size)
    await send({"type": "http.response.body", "body": b""})


async def start(send: Send, status: int, content_type: bytes, size: int) -> None:
    """Send the head of a response."""
    headers = [(b"content-type", content_type), (b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


app = ASGIDrain(plain)
