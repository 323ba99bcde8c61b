"""The checks themselves: one question to a VIP, over a socket that the caller has made."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

import h11

from sockway.balancer.health.spec import HealthSpec, Kind

_LARGEST: Final = 65_536
_QUIC_LEAST: Final = 1200  # RFC 9000, section 14.1
_UNKNOWN_VERSION: Final = 0x1A2A3A4A  # RFC 9000, section 15: reserved to force negotiation
_ID_OCTETS: Final = 8


class CheckError(Exception):
    """A check that failed; its words say why."""


async def check(spec: HealthSpec, sock: socket.socket, target: tuple[str, int]) -> None:
    """Ask once.

    Args:
        spec: what to ask.
        sock: a socket that does not block, of the right family and kind; it is closed afterwards.
        target: address and port of the VIP.

    Raises:
        CheckError: the answer is wrong, or there is none.

    """
    try:
        async with asyncio.timeout(spec.timeout):
            await _CHECKS[spec.type](spec, sock, target)
    except TimeoutError:
        raise CheckError(f"no answer within {spec.timeout:g} s") from None
    except ssl.SSLError as error:
        raise CheckError(f"TLS: {error.reason or error}") from None
    except OSError as error:
        # asyncio's own words name the target, which the reader knows.
        raise CheckError(os.strerror(error.errno) if error.errno else str(error)) from None
    except (ValueError, TypeError, h11.ProtocolError) as error:
        # A request that can't be written; a check that ends unseen would be worse.
        raise CheckError(f"the check can't be made: {error}") from None
    finally:
        sock.close()


async def _tcp(spec: HealthSpec, sock: socket.socket, target: tuple[str, int]) -> None:
    del spec
    await asyncio.get_running_loop().sock_connect(sock, target)


async def _http(spec: HealthSpec, sock: socket.socket, target: tuple[str, int]) -> None:
    await asyncio.get_running_loop().sock_connect(sock, target)
    context = None
    if spec.type == "https":
        context = ssl.create_default_context()
        if not spec.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    name = spec.host or target[0]
    reader, writer = await asyncio.open_connection(
        sock=sock, ssl=context, server_hostname=name if context else None
    )
    try:
        status, body = await _exchange(spec, reader, writer, name)
    except h11.RemoteProtocolError as error:
        raise CheckError(f"no HTTP: {error}") from None
    finally:
        writer.transport.abort()
    if status != spec.status:
        raise CheckError(f"status {status}, not {spec.status}")
    if spec.expect is not None and not re.search(spec.expect, body.decode("utf-8", "replace")):
        raise CheckError(f"the body does not match {spec.expect!r}")


async def _exchange(
    spec: HealthSpec, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str
) -> tuple[int, bytes]:
    connection = h11.Connection(h11.CLIENT)
    host = f"[{name}]" if ":" in name else name
    headers = [("Host", host), ("Connection", "close"), ("User-Agent", "sockway")]
    writer.write(
        connection.send(h11.Request(method="GET", target=spec.path, headers=headers)) or b""
    )
    connection.send(h11.EndOfMessage())
    status, body = 0, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_LARGEST))
        elif isinstance(event, h11.Response):
            status = event.status_code
            if spec.expect is None:  # the rest is of no interest
                return status, b""
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) >= _LARGEST:
                return status, bytes(body)
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            if not status:
                raise CheckError("the connection ended before the answer")
            return status, bytes(body)


async def _udp(spec: HealthSpec, sock: socket.socket, target: tuple[str, int]) -> None:
    answer = await _ask(sock, target, spec.send.encode())
    if spec.expect is not None and not re.search(spec.expect, answer.decode("utf-8", "replace")):
        raise CheckError(f"the answer does not match {spec.expect!r}")


async def _quic(spec: HealthSpec, sock: socket.socket, target: tuple[str, int]) -> None:
    """A packet of a version that nobody has must be answered by those there are."""
    del spec
    mine, theirs = secrets.token_bytes(_ID_OCTETS), secrets.token_bytes(_ID_OCTETS)
    packet = b"\xc0" + _UNKNOWN_VERSION.to_bytes(4, "big")
    packet += bytes([_ID_OCTETS]) + theirs + bytes([_ID_OCTETS]) + mine
    answer = await _ask(sock, target, packet.ljust(_QUIC_LEAST, b"\0"))
    # RFC 9000, section 17.2.1: version 0, then both IDs the other way round.
    expected = bytes(4) + bytes([_ID_OCTETS]) + mine + bytes([_ID_OCTETS]) + theirs
    if len(answer) < 1 + len(expected) + 4 or not answer[0] & 0x80 or answer[1:23] != expected:
        raise CheckError("the answer is no version negotiation")


async def _ask(sock: socket.socket, target: tuple[str, int], question: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, target)
    await loop.sock_sendall(sock, question)
    return await loop.sock_recv(sock, _LARGEST)


_CHECKS: Final[
    dict[Kind, Callable[[HealthSpec, socket.socket, tuple[str, int]], Awaitable[None]]]
] = {"tcp": _tcp, "http": _http, "https": _http, "udp": _udp, "quic": _quic}

__all__ = ["CheckError", "check"]
