"""The drain middleware, alone and under the servers that it is for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from sockway.drain import ASGIDrain, WSGIDrain
from sockway.serve.runtime import RuntimeDirectory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RuntimeDirectory:
    """A runtime directory whose generation 1 this process belongs to."""
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path))
    runtime = RuntimeDirectory("web")
    runtime.create()
    runtime.set_flag(1, draining=False)
    monkeypatch.setenv("SOCKWAY_DRAIN", str(runtime.flag(1)))
    return runtime


async def respond(scope: dict[str, Any], headers: list[tuple[bytes, bytes]]) -> list[Any]:
    """The headers that a wrapped ASGI application's response has."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    await ASGIDrain(app)(scope, receive, send)
    assert headers == [h for h in headers if h[1] != b"close"], "the application's list is its own"
    return list(sent[0]["headers"])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_asgi_asks_to_close_while_draining(flag: RuntimeDirectory, version: str) -> None:
    """`Connection: close` instead of what the application says of connections, and not before."""
    scope = {"type": "http", "http_version": version}
    headers = [(b"x", b"y"), (b"Connection", b"keep-alive")]
    assert await respond(scope, headers) == headers
    flag.set_flag(1, draining=True)
    assert await respond(scope, headers) == [(b"x", b"y"), (b"connection", b"close")]
    flag.set_flag(1, draining=False)
    assert await respond(scope, headers) == headers


async def test_asgi_leaves_http2_alone(flag: RuntimeDirectory) -> None:
    """The header is forbidden there, and a `send` that is not hypercorn's is not touched."""
    flag.set_flag(1, draining=True)
    assert await respond({"type": "http", "http_version": "2"}, [(b"x", b"y")]) == [(b"x", b"y")]


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
async def test_asgi_passes_other_scopes(flag: RuntimeDirectory, kind: str) -> None:
    """They reach the application as they are."""
    flag.set_flag(1, draining=True)
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((scope["type"], receive, send))

    receive, send = object(), object()
    await ASGIDrain(app)({"type": kind}, receive, send)  # type: ignore[arg-type]
    assert seen == [kind, receive, send]


def test_wsgi_asks_to_close_while_draining(flag: RuntimeDirectory) -> None:
    """A plain server gets the header; gunicorn's response object is told to close instead."""

    def app(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X", "y"), ("connection", "keep-alive")])
        return [b"body"]

    class Response:
        """As gunicorn's."""

        def __init__(self) -> None:
            """Keep alive unless told otherwise."""
            self.forced = False

        headers: list[tuple[str, str]]

        def force_close(self) -> None:
            """Close it after the response."""
            self.forced = True

        def start_response(self, _status: str, headers: list[tuple[str, str]]) -> None:
            """Take the head."""
            self.headers = headers

    seen: list[Any] = []
    wrapped = WSGIDrain(app)
    assert wrapped({}, lambda _status, headers: seen.append(headers)) == [b"body"]
    response = Response()
    wrapped({}, response.start_response)
    assert [response.forced] == [False]
    flag.set_flag(1, draining=True)
    wrapped({}, lambda _status, headers: seen.append(headers))
    wrapped({}, response.start_response)
    assert [response.forced] == [True]
    assert seen == [
        [("X", "y"), ("connection", "keep-alive")],
        [("X", "y"), ("Connection", "close")],
    ]


SERVERS = {
    "uvicorn": ["uvicorn", "app:app", "--fd", "{fd}", "--log-level", "error"],
    "hypercorn": ["hypercorn", "--workers", "0", "--bind", "fd://{fd}", "app:app"],
    "granian": ["granian_launcher.py", "{fd}", "app:app"],
    "gunicorn": [
        *("gunicorn", "wsgi_app:app", "--bind", "fd://{fd}", "--worker-class", "gthread"),
        *("--keep-alive", "30", "--log-level", "error"),
    ],
}


@contextlib.contextmanager
def server(name: str, home: Path) -> Iterator[int]:
    """One of the examples' servers on a socket that it inherits; yields the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        words = [word.replace("{fd}", str(listener.fileno())) for word in SERVERS[name]]
        start = words if words[0].endswith(".py") else ["-m", *words]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LISTEN_")}
        process = subprocess.Popen(
            [sys.executable, *start],
            cwd=ROOT / "examples",
            pass_fds=[listener.fileno()],
            env={**environment, "HOME": str(home)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.mark.parametrize("name", SERVERS)
async def test_a_keep_alive_client_is_let_go(
    flag: RuntimeDirectory, tmp_path: Path, name: str
) -> None:
    """Two requests on one connection; the next one, while draining, is its last."""
    with server(name, tmp_path) as port:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                head = await request(reader, writer)
                assert b"connection: close" not in head.lower()
            flag.set_flag(1, draining=True)
            head = await request(reader, writer)
            assert b"connection: close" in head.lower()
            assert await reader.read() == b"", "and the server closes it"
            writer.close()
            await writer.wait_closed()


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """One request; returns the response's head, the body being read."""
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head
    if b"chunked" in head.lower():
        await reader.readuntil(b"0\r\n\r\n")
    else:
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        await reader.readexactly(int(length))
    return head


class Http2:
    """A client of cleartext HTTP/2, with all that it has seen."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Begin the connection."""
        self.reader, self.writer = reader, writer
        self.seen: list[Any] = []
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration())
        self.h2.initiate_connection()

    async def wait_for(self, kind: type[Any], **facts: Any) -> Any:
        """The first event of this kind with these facts."""
        while True:
            for event in self.seen:
                if isinstance(event, kind) and facts.items() <= vars(event).items():
                    return event
            self.writer.write(self.h2.data_to_send())
            data = await self.reader.read(65536)
            assert data, f"ended without {kind.__name__}: {self.seen}"
            self.seen += self.h2.receive_data(data)

    async def get(self) -> int:
        """One request to its end; returns the stream's number."""
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "x")]
        self.h2.send_headers(stream, head, end_stream=True)
        await self.wait_for(h2.events.StreamEnded, stream_id=stream)
        return stream


async def test_http2_gets_a_goaway_from_hypercorn(flag: RuntimeDirectory, tmp_path: Path) -> None:
    """After the response to a request while draining, which itself is whole."""
    with server("hypercorn", tmp_path) as port:
        async with asyncio.timeout(30):
            client = Http2(*await asyncio.open_connection("127.0.0.1", port))
            await client.get()
            await client.get()
            assert not [e for e in client.seen if isinstance(e, h2.events.ConnectionTerminated)]
            flag.set_flag(1, draining=True)
            last = await client.get()
            goaway = await client.wait_for(h2.events.ConnectionTerminated)
            assert (goaway.error_code, goaway.last_stream_id) == (0, last)
            client.writer.close()
            await client.writer.wait_closed()
