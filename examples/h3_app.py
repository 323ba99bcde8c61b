r"""An HTTP/3 application for hypercorn, released by Sockway.

    python examples/make_certificate.py /tmp/h3
    sockway serve --listen 'tcp://[::]:8443?name=h2' \
        --listen 'udp://[::]:8443?flow=quic&ids=sockway&name=h3' --workers 2 -- \
        hypercorn --workers 0 --certfile /tmp/h3/certificate.pem --keyfile /tmp/h3/key.pem \
        --bind 'fd://{fd:h2}' --quic-bind 'fd://{fd:h3}' --graceful-timeout 30 \
        examples.h3_app:app

`/` tells who answers; `/bytes/N` sends N octets, slowly with `/bytes/N?seconds=S`.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from sockway.quic.aioquic import install_from_environment_if_present

# Connection IDs name this worker, so its packets find it. Without Sockway this does nothing.
install_from_environment_if_present()

CHUNK = 16 * 1024

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]

WHO = {
    "pid": os.getpid(),
    "generation": int(os.environ.get("SOCKWAY_GENERATION", "0")),
    "worker": int(os.environ.get("SOCKWAY_WORKER", "0")),
    "version": os.environ.get("APP_VERSION", "1"),
}


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer a request (ASGI 3)."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "http":
        path: str = scope["path"]
        size = path.removeprefix("/bytes/")
        if size != path and size.isdigit():
            seconds = float(parse_qs(scope["query_string"].decode()).get("seconds", ["0"])[0])
            await download(send, int(size), seconds)
        elif path == "/":
            await answer(send, 200, {**WHO, "http_version": scope["http_version"]})
        else:
            await answer(send, 404, {"error": f"no such path: {path}"})


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
