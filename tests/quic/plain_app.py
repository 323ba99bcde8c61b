"""An application that knows nothing of Sockway."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any


async def app(
    scope: dict[str, Any],
    _receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer with the process id, or with as many octets as the path says."""
    assert scope["type"] == "http"
    body = json.dumps({"pid": os.getpid()}).encode()
    if scope["path"].startswith("/bytes/"):
        body = bytes(int(scope["path"].removeprefix("/bytes/")))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
