"""Each kind of check against real servers on the loopback, good ones and bad."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sockway.balancer.health.checks import CheckError, check
from sockway.balancer.health.spec import HealthSpec
from sockway.lab.servers.certificate import write_certificate
from sockway.lab.servers.named_http3 import serve_http3

HOST = "127.0.0.1"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nalive"


async def ask(port: int, **spec: Any) -> None:
    """One check."""
    health = HealthSpec.model_validate({"timeout": 0.5} | spec)
    kind = socket.SOCK_STREAM if health.protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    await check(health, sock, (HOST, port))
    assert sock.fileno() < 0


async def with_server(
    answer: bytes | None, work: Callable[[int], Awaitable[None]], context: Any = None
) -> bytes:
    """Do something while a TCP server runs that answers everything so; what it was asked."""
    asked = bytearray()
    served: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.append(task)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            asked.extend(await reader.read(4096))
            if answer is not None:
                writer.write(answer)
                await writer.drain()
            else:
                await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(serve, HOST, 0, ssl=context)
    try:
        await work(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await asyncio.sleep(0.05)
        await asyncio.gather(*served, return_exceptions=True)
    return bytes(asked)


def free_port(kind: int) -> int:
    """A port that nobody listens at."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


async def test_tcp() -> None:
    """Somebody listens, or nobody."""
    await with_server(None, lambda port: ask(port, type="tcp"))
    with pytest.raises(CheckError, match="refused"):
        await ask(free_port(socket.SOCK_STREAM), type="tcp")


async def test_http() -> None:
    """Path and host are asked for; the status counts, and the body if it is asked for."""
    asked = await with_server(
        OK, lambda port: ask(port, type="http", path="/live?x=1", host="a.example", expect="^ali")
    )
    assert asked.startswith(b"GET /live?x=1 HTTP/1.1\r\n")
    assert b"host: a.example\r\n" in asked.lower()
    await with_server(OK.replace(b"200", b"204"), lambda port: ask(port, type="http", status=204))


@pytest.mark.parametrize(
    ("answer", "spec", "words"),
    [
        (OK.replace(b"200", b"503"), {}, "status 503"),
        (OK, {"expect": "dead"}, "does not match"),
        (b"SSH-2.0-x\r\n", {}, "no HTTP"),
        (b"", {}, "no HTTP|ended before"),
        (None, {}, "no answer within 0.5 s"),
    ],
)
async def test_http_that_fails(answer: bytes | None, spec: dict[str, Any], words: str) -> None:
    """The words say how."""

    async def asking(port: int) -> None:
        with pytest.raises(CheckError, match=words):
            await ask(port, type="http", **spec)

    await with_server(answer, asking)


@pytest.mark.parametrize(
    "spec",
    [
        {"path": "/\u00e4"}, {"path": "/a b"}, {"path": "x"}, {"path": "/\x7f"}, {"path": "/\n"},
        {"host": "a\r\nb"}, {"host": "\u00e4.example"}, {"host": "."}, {"host": ""},
        {"host": "a." + "b" * 64}, {"host": "a:80"}, {"expect": "("},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(spec: dict[str, Any]) -> None:
    """And not found out by the check."""
    with pytest.raises(ValidationError):
        HealthSpec.model_validate({"type": "https"} | spec)


async def test_a_request_that_cannot_be_written_is_a_failure() -> None:
    """Whatever gets past the validators: a check never ends unseen."""
    spec = HealthSpec(type="http", timeout=0.5).model_copy(update={"host": "a\r\nb"})

    async def asking(port: int) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with pytest.raises(CheckError, match="can't be made"):
            await check(spec, sock, (HOST, port))
        assert sock.fileno() < 0

    await with_server(OK, asking)


async def test_https(tmp_path: Path) -> None:
    """Anybody's certificate will do, unless it is to be verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write_certificate(tmp_path))
    await with_server(OK, lambda port: ask(port, type="https"), context)

    async def verified(port: int) -> None:
        with pytest.raises(CheckError, match="TLS"):
            await ask(port, type="https", verify=True, host="localhost")

    await with_server(OK, verified, context)


async def test_udp() -> None:
    """An answer, the right one; none at all; nobody there."""
    loop = asyncio.get_running_loop()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            if data != b"silence":
                self.transport.sendto(b"got " + data, addr)

    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=(HOST, 0))
    port = transport.get_extra_info("sockname")[1]
    try:
        await ask(port, type="udp", send="ping", expect="^got ping$")
        with pytest.raises(CheckError, match="does not match"):
            await ask(port, type="udp", send="ping", expect="pong")
        with pytest.raises(CheckError, match="no answer"):
            await ask(port, type="udp", send="silence")
    finally:
        transport.close()
    with pytest.raises(CheckError, match="refused"):
        await ask(free_port(socket.SOCK_DGRAM), type="udp", send="ping")


async def test_quic(tmp_path: Path) -> None:
    """A QUIC server negotiates; another that answers is none."""
    port = free_port(socket.SOCK_DGRAM)
    servers = await serve_http3(b"me", [(HOST, port)], tmp_path)
    try:
        await ask(port, type="quic")
    finally:
        for server in servers:
            server.close()
    loop = asyncio.get_running_loop()

    class Other(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(data[::-1], addr)

    transport, _ = await loop.create_datagram_endpoint(Other, local_addr=(HOST, 0))
    try:
        with pytest.raises(CheckError, match="no version negotiation"):
            await ask(transport.get_extra_info("sockname")[1], type="quic")
    finally:
        transport.close()
