"""The control socket: how the command line talks to the supervisor that lives.

One JSON object a line over a UNIX socket. A request is `{"command": NAME, ...}`; the answer is any
number of events (`{"step": ...}`) and then one line with `"ok"`, and on failure `"error"`,
`"hint"`, `"kind"` (the name of the exception) and `"output"` (the last lines of a worker that did
not get ready). The socket is the user's alone (mode 0600).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from sockway import errors
from sockway.errors import SockwayError

Send = Callable[[dict[str, Any]], None]
Handler = Callable[[dict[str, Any], Send], Awaitable[dict[str, Any]]]
_LONGEST: Final = 1 << 20


class ControlServer:
    """Answers commands at a path."""

    def __init__(self, path: Path, handler: Handler) -> None:
        """Name the path and who answers."""
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; a socket that a dead supervisor left is replaced."""
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, path=str(self._path), limit=_LONGEST
            )
        finally:
            os.umask(before)

    async def close(self) -> None:
        """Stop listening, and end what is being answered."""
        if self._server is not None:
            self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

        def send(message: dict[str, Any]) -> None:
            # A client that went away must not end a release.
            with contextlib.suppress(OSError):
                writer.write(json.dumps(message).encode() + b"\n")

        try:
            line = await reader.readline()
            send(await self._answer(line, send))
            with contextlib.suppress(OSError):
                await writer.drain()
        finally:
            writer.close()

    async def _answer(self, line: bytes, send: Send) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict) or not isinstance(request.get("command"), str):
                return {"ok": False, "kind": "ConfigError", "error": "not a command"}
            return {"ok": True, **await self._handler(request, send)}
        except ValueError:
            return {"ok": False, "kind": "ConfigError", "error": "a command is one line of JSON"}
        except SockwayError as error:
            return {
                "ok": False,
                "kind": _public_kind(error),
                "error": error.message,
                "hint": error.hint,
                "output": getattr(error, "output", []),
            }


def _public_kind(error: SockwayError) -> str:
    """The name of the error's class, or of the nearest above it that everybody knows."""
    return next(kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
