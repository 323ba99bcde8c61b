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
from typing import Final

from sockway.kernel import sockdiag
from sockway.sockets.generation import Generation
from sockway.wire.addresses import Vip

_PATIENCE: Final = 1.0
"""Seconds that one attempt may take."""
_PAUSE: Final = 0.02
_OK: Final = range(200, 300)


def target(vip: Vip) -> tuple[str, int]:
    """An address of this host that the VIP is reached by."""
    if vip.is_wildcard:
        return ("::1" if vip.address.version == 6 else "127.0.0.1", vip.port)  # noqa: PLR2004
    return str(vip.address), vip.port


def first_tcp(generation: Generation) -> Vip | None:
    """The VIP that a TCP probe asks."""
    return next((vip for vip in generation.vips if vip.protocol == "tcp"), None)


async def accepts(generation: Generation, worker: int) -> None:
    """Return when the worker accepts connections."""
    await _until(_accepts, generation, worker)


async def answers(generation: Generation, worker: int, path: str) -> None:
    """Return when the worker answers GET `path` with a status of 200 to 299."""
    await _until(_answers, generation, worker, path)


async def _until(attempt: object, *arguments: object) -> None:
    while not await asyncio.to_thread(attempt, *arguments):  # type: ignore[arg-type]
        await asyncio.sleep(_PAUSE)


def _accepts(generation: Generation, worker: int) -> bool:
    vip = first_tcp(generation)
    if vip is None:
        return True
    with generation.probe_socket(vip, worker) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(target(vip))
        except OSError:
            return False
        local = sock.getsockname()[1]
        limit = time.monotonic() + _PATIENCE
        while time.monotonic() < limit:
            # Accepted is what has an inode: a connection that waits in the queue has none.
            if any(c.inode for c in sockdiag.established([vip.port]) if c.peer_port == local):
                return True
            time.sleep(_PAUSE)
    return False


def _answers(generation: Generation, worker: int, path: str) -> bool:
    vip = first_tcp(generation)
    if vip is None:
        return True
    host, port = target(vip)
    with generation.probe_socket(vip, worker) as sock:
        sock.settimeout(_PATIENCE)
        connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
        try:
            sock.connect((host, port))
            connection.sock = socket.socket(fileno=sock.detach())
            connection.request("GET", path, headers={"Connection": "close"})
            return connection.getresponse().status in _OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
