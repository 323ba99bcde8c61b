"""Is a worker ready to be published? It says so, or it is asked.

A probe's connection must meet a worker that no client can reach yet: the router sends the
connection of a given source there (`Generation.probe_socket`). A plain connect proves nothing, as
the kernel completes handshakes for a listener whose process sleeps; so `tcp` waits until the
worker has accepted, and `http` until it has answered.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import time
from collections.abc import Callable
from typing import Final

from sockway.errors import StateError
from sockway.kernel import sockdiag
from sockway.sockets.generation import Generation
from sockway.wire.addresses import Vip

KINDS: Final = "auto, notify, tcp, http:PATH, log:REGEX, exec"
"""What `--ready` can be; `ServeSpec.ready_kind` says what each means."""
_PATIENCE: Final = 2.0
"""Seconds that one attempt may take."""
_PAUSE: Final = 0.02
_OK: Final = range(200, 300)


def target(vip: Vip) -> tuple[str, int]:
    """An address of this host that the VIP is reached by."""
    if vip.is_wildcard:
        return ("::1" if vip.address.version == 6 else "127.0.0.1", vip.port)  # noqa: PLR2004
    return str(vip.address), vip.port


async def accepts(generation: Generation, vip: Vip, worker: int) -> None:
    """Return when the worker accepts connections to the VIP."""
    await _until(lambda: _accepts(generation, vip, worker))


async def answers(generation: Generation, vip: Vip, worker: int, path: str) -> None:
    """Return when the worker answers GET `path` with a status of 200 to 299."""
    await _until(lambda: _answers(generation, vip, worker, path))


async def _until(attempt: Callable[[], bool]) -> None:
    while True:
        look = asyncio.ensure_future(asyncio.to_thread(attempt))
        try:
            if await asyncio.shield(look):
                return
        except asyncio.CancelledError:
            # The router knows one probe at a time: this one has to be over before the next.
            await asyncio.wait([look])
            raise
        await asyncio.sleep(_PAUSE)


def _accepts(generation: Generation, vip: Vip, worker: int) -> bool:
    cookie = generation.live_sockets().get((vip, worker))
    limit = time.monotonic() + _PATIENCE
    try:
        with generation.probe_socket(vip, worker) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect(target(vip))
            while time.monotonic() < limit:
                # Nobody else connects to a worker that is not published, so an empty queue
                # means that it took this connection.
                queues = {s.cookie: s.accept_queue for s in sockdiag.listeners([vip.port])}
                if queues.get(cookie or 0) == 0:
                    return True
                time.sleep(_PAUSE)
    except (OSError, StateError):
        pass
    return False


def _answers(generation: Generation, vip: Vip, worker: int, path: str) -> bool:
    host, port = target(vip)
    connection = http.client.HTTPConnection(host, port)
    try:
        with generation.probe_socket(vip, worker) as sock:
            sock.settimeout(_PATIENCE)
            sock.connect((host, port))
            connection.sock = socket.socket(fileno=sock.detach())
            connection.sock.settimeout(_PATIENCE)
            connection.request("GET", path, headers={"Connection": "close"})
            return connection.getresponse().status in _OK
    except (OSError, StateError, http.client.HTTPException):
        return False
    finally:
        connection.close()
