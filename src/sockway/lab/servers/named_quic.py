"""HTTP/3 on inherited sockets: ``python -m sockway.lab.servers.named_quic NAME CERTIFICATE KEY``.

A worker of ``sockway serve``, whose connection IDs it uses. Each request is answered with
``NAME GENERATION WORKER``. It ends at once on SIGTERM: lingering is its supervisor's.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from functools import partial

from aioquic.asyncio.server import QuicServer
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration

from sockway.lab.servers.identity import inherited_sockets, notify_ready
from sockway.lab.servers.named_http3 import Answering
from sockway.quic.aioquic import install

IDLE = 600.0
"""Seconds until a connection that nobody uses ends."""


async def serve(name: bytes, certificate: str, key: str) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, done.set)
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN, idle_timeout=IDLE)
    configuration.load_cert_chain(certificate, key)
    for sock in inherited_sockets():
        sock.setblocking(False)
        await loop.create_datagram_endpoint(
            lambda: QuicServer(
                configuration=configuration, create_protocol=partial(Answering, name)
            ),
            sock=sock,
        )
    notify_ready()
    await done.wait()


def main() -> None:
    """Read the command line, and have connection IDs that lead here."""
    name, certificate, key = sys.argv[1:]
    ids = install()
    whole = f"{name} {os.environ['SOCKWAY_GENERATION']} {ids.worker}"
    asyncio.run(serve(whole.encode(), certificate, key))


if __name__ == "__main__":
    main()
