"""QUIC connections that last: opened once, used now and then, and what became of each.

Between two calls nothing runs: a connection is as a client's that sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from sockway.errors import SockwayError
from sockway.lab.load.exchange import ExchangeError
from sockway.lab.load.http3 import Client
from sockway.lab.network import Node
from sockway.lab.patience import patient
from sockway.lab.tally import Outcome

ESTABLISH: Final = 15.0
"""Seconds that a handshake may take, among all the others."""
IDLE: Final = 600.0
_AT_ONCE: Final = 16
"""Handshakes under way."""


@dataclass(eq=False)
class LastingQuic:
    """One connection."""

    node: Node
    """The host that it is of."""
    target: tuple[Any, ...]
    client: Client
    transport: asyncio.DatagramTransport
    owner: bytes = b""
    """Who answered first: backend, generation, worker."""
    fate: str = "alive"
    """`alive`, or why it ended: `reset`, `silent`, `moved` (another one answered)."""

    @property
    def connection_id(self) -> bytes:
        """The server's ID that its packets carry."""
        return self.client._quic._peer_cid.cid  # noqa: SLF001 - aioquic tells it nowhere else

    @property
    def port(self) -> int:
        """That it is sent from."""
        return int(self.transport.get_extra_info("sockname")[1])


class LastingQuics:
    """Many of them, from hosts of a lab to VIPs. Closing ends them all."""

    def __init__(self) -> None:
        """Have none yet."""
        self.members: list[LastingQuic] = []
        self._runner = asyncio.Runner()

    def open(self, nodes: Sequence[Node], targets: Sequence[tuple[str, int]], count: int) -> None:
        """Open so many more, by turns from these hosts to these targets, and ask who serves them.

        Raises:
            SockwayError: not all came about.

        """
        wanted = [
            (nodes[i % len(nodes)], targets[i // len(nodes) % len(targets)]) for i in range(count)
        ]
        self._runner.run(self._open(wanted))

    async def _open(self, wanted: Iterable[tuple[Node, tuple[str, int]]]) -> None:
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(node: Node, target: tuple[str, int]) -> LastingQuic:
            async with room, asyncio.timeout(patient(ESTABLISH)):
                made = await _connect(node, target)
                made.owner = await made.client.get("localhost", "/", patient(ESTABLISH))
                return made

        found = await asyncio.gather(*(one(*each) for each in wanted), return_exceptions=True)
        self.members += [each for each in found if isinstance(each, LastingQuic)]
        errors = [repr(each) for each in found if isinstance(each, BaseException)]
        if errors:
            raise SockwayError(f"{len(errors)} QUIC connections did not come about: {errors[0]}")

    def ask(self, timeout: float = 4.0) -> Counter[str]:
        """Have each that is alive ask, and read its answer; what became of all.

        Args:
            timeout: seconds until one that hears nothing counts as silent.

        """
        self._runner.run(_all(_ask(each, patient(timeout)) for each in self.alive))
        return self.fates()

    def renew(self, nodes: Sequence[Node], targets: Sequence[tuple[str, int]]) -> int:
        """Open new ones for those that are gone.

        Returns:
            how many were opened.

        Raises:
            SockwayError: not all came about.

        """
        missing = len(self.members) - len(self.alive)
        self.members = self.alive
        self.open(nodes, targets, missing)
        return missing

    def end(self, which: Iterable[LastingQuic]) -> None:
        """Close these, and know them no more; servers are told."""
        ended = list(which)
        self._runner.run(_end(ended))
        self.members = [each for each in self.members if each not in ended]

    def rebind(self, count: int | None = None) -> None:
        """Have the first ones come from other ports, as behind a NAT that forgot them.

        The clients don't know, and send to the same ID of the server.

        Args:
            count: how many of those that are alive; all if not given.

        """
        self._runner.run(_all(_rebind(each) for each in self.alive[:count]))

    def change_ids(self) -> None:
        """Have all of them go on with another ID that the server gave them, and tell it."""

        async def change(each: LastingQuic) -> None:
            each.client.change_connection_id()

        self._runner.run(_all(change(each) for each in self.alive))

    @property
    def alive(self) -> list[LastingQuic]:
        """Those that are."""
        return [each for each in self.members if each.fate == "alive"]

    def fates(self) -> Counter[str]:
        """How many are alive, and how the others ended."""
        return Counter(each.fate for each in self.members)

    def owners(self) -> Counter[str]:
        """How many of those alive each backend has."""
        return Counter(each.owner.split()[0].decode() for each in self.alive)

    def close(self) -> None:
        """End them all; servers are told."""
        with self._runner:
            self._runner.run(_end(self.members))

    def __enter__(self) -> Self:
        """Return itself; all are closed when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """End them all."""
        self.close()


async def _all(works: Iterable[Any]) -> None:
    await asyncio.gather(*works)


async def _end(which: Sequence[LastingQuic]) -> None:
    for each in which:
        each.client.close()
    await asyncio.sleep(0)
    for each in which:
        each.transport.close()
    await asyncio.sleep(0)


async def _connect(node: Node, target: tuple[str, int]) -> LastingQuic:
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=H3_ALPN,
        verify_mode=ssl.CERT_NONE,
        server_name="localhost",
        idle_timeout=IDLE,
    )
    connection = QuicConnection(configuration=configuration)
    is_ipv6 = ":" in target[0]
    # As answers have it, so that they are known to be from there.
    address: tuple[Any, ...] = (*target, 0, 0) if is_ipv6 else target
    loop = asyncio.get_running_loop()
    transport, client = await loop.create_datagram_endpoint(
        lambda: Client(connection), sock=_socket(node, is_ipv6=is_ipv6)
    )
    try:
        client.connect(address)
        await client.wait_connected()
    except BaseException:
        transport.close()
        raise
    return LastingQuic(node, address, client, transport)


def _socket(node: Node, *, is_ipv6: bool) -> socket.socket:
    """One of a host, on a port that the kernel chooses."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind(("::" if is_ipv6 else "0.0.0.0", 0))
        return sock

    return node.run(make)


async def _ask(each: LastingQuic, wait: float) -> None:
    try:
        answer = await each.client.get("localhost", "/", wait)
    except (ExchangeError, ConnectionError) as error:
        is_timeout = isinstance(error, ExchangeError) and error.outcome is Outcome.TIMEOUT
        each.fate = "silent" if is_timeout else "reset"
    else:
        if answer != each.owner:
            each.fate = "moved"
    if each.fate != "alive":
        with contextlib.suppress(ConnectionError):
            each.client.close()
        each.transport.close()


async def _rebind(each: LastingQuic) -> None:
    old = each.transport
    loop = asyncio.get_running_loop()
    sock = _socket(each.node, is_ipv6=len(each.target) > 2)  # noqa: PLR2004
    each.transport, _ = await loop.create_datagram_endpoint(lambda: each.client, sock=sock)
    old.close()


__all__ = ["LastingQuic", "LastingQuics"]
