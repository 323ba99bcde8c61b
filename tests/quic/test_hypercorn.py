from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

from examples.make_certificate import make_certificate
from sockway.wire.host_id import HostIds, Owner

ROOT = Path(__file__).resolve().parents[2]
KEY = bytes(range(16))


class Client(QuicConnectionProtocol):
    """Asks for one thing at a time over HTTP/3."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Be ready before the handshake: the server opens its streams at the end of it."""
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)

    def quic_event_received(self, event: QuicEvent) -> None:
        """Put the answer together."""
        for received in self.http.handle_event(event):
            if isinstance(received, HeadersReceived):
                assert dict(received.headers)[b":status"] == b"200"
            elif isinstance(received, DataReceived):
                self.body += received.data
            if getattr(received, "stream_ended", False):
                self.done.set_result(self.body)

    async def get(self, path: str) -> bytes:
        """The body of the answer to a request."""
        self.body = b""
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        headers = {":method": "GET", ":scheme": "https", ":authority": "localhost", ":path": path}
        self.http.send_headers(
            self._quic.get_next_available_stream_id(),
            [(name.encode(), value.encode()) for name, value in headers.items()],
            end_stream=True,
        )
        self.transmit()
        return await asyncio.wait_for(self.done, 10)

    def offered(self) -> list[bytes]:
        """The IDs that the server wants to be known by."""
        return [self._quic._peer_cid.cid, *(other.cid for other in self._quic._peer_cid_available)]


@contextmanager
def _hypercorn(
    udp: socket.socket, certificate: tuple[Path, Path], id_length: int, *command: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run hypercorn on sockets that it inherits, as a worker is run."""
    tcp = socket.create_server(("127.0.0.1", 0))
    environment = {
        "SOCKWAY_GENERATION": "258",
        "SOCKWAY_WORKER": "4",
        "SOCKWAY_ID_KEY": KEY.hex(),
        "SOCKWAY_ID_LENGTH": str(id_length),
    }
    with tcp:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", *command, "--workers", "0"),
                *("--certfile", str(certificate[0]), "--keyfile", str(certificate[1])),
                *("--bind", f"fd://{tcp.fileno()}", "--quic-bind", f"fd://{udp.fileno()}"),
                *("--graceful-timeout", "1", "--log-level", "error"),
            ],
            pass_fds=[tcp.fileno(), udp.fileno()],
            cwd=ROOT,
            env={**os.environ, **environment},
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.parametrize("id_length", [8, 16, 20])
@pytest.mark.parametrize(
    "command",
    [
        ("hypercorn", "examples.h3_app:app"),
        ("sockway.quic", "hypercorn", "tests.quic.plain_app:app"),
    ],
    ids=["application", "command"],
)
async def test_hypercorn_uses_our_ids(
    tmp_path: Path, command: tuple[str, ...], id_length: int
) -> None:
    """HTTP/3 works on an inherited socket, and every ID that the server offers is ours.

    Either the application asks for it, or an unchanged one runs below `python -m sockway.quic`.
    """
    certificate = make_certificate(tmp_path)
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, cafile=str(certificate[0])
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        port = udp.getsockname()[1]
        with _hypercorn(udp, certificate, id_length, *command) as process:
            # The socket is bound: what comes before hypercorn is up waits in its queue.
            async with asyncio.timeout(20):
                async with connect(
                    "127.0.0.1", port, configuration=configuration, create_protocol=Client
                ) as connection:
                    client = cast("Client", connection)
                    assert json.loads(await client.get("/"))["pid"] == process.pid
                    codec = HostIds(KEY, id_length)
                    offered = client.offered()
                    assert len(set(offered)) == 8
                    assert {len(one) for one in offered} == {id_length}
                    assert {codec.read(one) for one in offered} == {Owner(258 % 256, 4)}
                    # Another of its IDs, and short headers enough to be sure of their length.
                    client.change_connection_id()
                    assert len(await client.get("/bytes/300000")) == 300_000
                    assert codec.read(client._quic._peer_cid.cid) == Owner(258 % 256, 4)
