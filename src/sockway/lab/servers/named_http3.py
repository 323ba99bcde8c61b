"""HTTP/3 for the server that says who it is: each request is answered with the name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent

from sockway.lab.servers.certificate import write_certificate


class Answering(QuicConnectionProtocol):
    """One connection of a client."""

    def __init__(self, name: bytes, *args: Any, **kwargs: Any) -> None:
        """As aioquic makes it, with the name to answer with."""
        super().__init__(*args, **kwargs)
        self._name = name
        self._http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        """Answer requests that are whole."""
        if isinstance(event, ProtocolNegotiated):
            self._http = H3Connection(self._quic)
        if self._http is None:
            return
        for message in self._http.handle_event(event):
            if isinstance(message, HeadersReceived | DataReceived) and message.stream_ended:
                headers = [(b":status", b"200"), (b"content-length", b"%d" % len(self._name))]
                self._http.send_headers(message.stream_id, headers)
                self._http.send_data(message.stream_id, self._name, end_stream=True)
                self.transmit()


async def serve_http3(
    name: bytes, endpoints: list[tuple[str, int]], directory: Path
) -> list[QuicServer]:
    """Serve at these addresses and ports, with a certificate of this process's own."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(*write_certificate(directory))
    return [
        await serve(
            host, port, configuration=configuration, create_protocol=partial(Answering, name)
        )
        for host, port in endpoints
    ]
