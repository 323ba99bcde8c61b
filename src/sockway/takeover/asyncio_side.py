"""Any asyncio server under takeover: its listening sockets are recognised when it opens them.

Servers that take sockets from their parent hand them to the loop's `create_server` and
`create_datagram_endpoint`. Both are wrapped, in asyncio's loops and in uvloop's: a socket that is a
VIP's goes to the agent, any other takes its usual way. A UDP VIP gets a transport of our own, for
asyncio's would read by itself; it reads up to 64 packets each time it is woken, not one. A TCP VIP
gets a server of our own, for asyncio's would accept before this process has taken over.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import socket
from asyncio.base_events import BaseEventLoop
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from sockway.errors import ConfigError
from sockway.takeover.agent import Agent
from sockway.takeover.forward import Address

_MOST_WAITING: Final = 4096
_BACKLOG: Final = 100
"""asyncio's."""


class VipTransport(asyncio.DatagramTransport):
    """A transport that receives what the agent says is ours."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.DatagramProtocol,
        agent: Agent,
        number: int,
    ) -> None:
        """Be open for the VIP of this number."""
        self._loop = loop
        self._protocol = protocol
        self._waiting: deque[tuple[bytes, Address]] = deque()
        self._closing = False
        self._socket = agent.datagrams(number, protocol.datagram_received)
        names = {"socket": self._socket, "sockname": self._socket.getsockname()}
        super().__init__(names)

    def sendto(self, data: bytes, addr: Any = None) -> None:  # type: ignore[override]
        """Send a datagram, or keep it until there is room."""
        if not self._waiting:
            try:
                self._socket.sendto(data, addr)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._socket.fileno(), self._writable)
            except OSError as error:
                self._protocol.error_received(error)
                return
            else:
                return
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append((bytes(data), addr))

    def _writable(self) -> None:
        while self._waiting:
            data, addr = self._waiting[0]
            try:
                self._socket.sendto(data, addr)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._protocol.error_received(error)
            self._waiting.popleft()
        self._loop.remove_writer(self._socket.fileno())

    def close(self) -> None:
        """Receive no more; the agent may forward still."""
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        """As `close`."""
        self.close()

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self._closing


class VipServer(asyncio.AbstractServer):
    """What `create_server` returns for a VIP: open for its owner, accepting while the agent says.

    The loop's own server accepts from its start, and ends with its socket; this one does neither.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[socket.socket], Coroutine[Any, Any, Any]],
        server: Any,
        sock: socket.socket,
        backlog: int,
    ) -> None:
        """Take a server that accepts nothing yet, and what makes another."""
        self._loop = loop
        self._make = make
        self._server = server
        self._descriptor = os.dup(sock.fileno())
        self._backlog = backlog
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._forever: asyncio.Future[None] | None = None

    # --- what the agent calls

    def start(self) -> None:
        """Accept."""
        self._accept(self._server.start_serving)

    def resume(self) -> None:
        """Accept again."""
        self._accept(self._begin_again)

    def stop(self) -> None:
        """Accept no more: this process's descriptor is closed, the queue stays the socket's."""
        if self._task is not None:
            self._task.cancel()
        if not isinstance(self._loop, BaseEventLoop):
            self._server.close()
            return
        for sock in self._server.sockets:
            self._loop.remove_reader(sock.fileno())
        # asyncio drops what it has accepted and not yet given to a protocol, which takes a turn of
        # the loop, if the server is closed meanwhile.
        self._loop.call_soon(self._loop.call_soon, self._server.close)

    def _accept(self, begin: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        if self._closed:
            return
        # At once, not in a turn of the loop: this process says now that it serves.
        with socket.socket(fileno=os.dup(self._descriptor)) as sock:
            sock.listen(self._backlog)
        self._task = self._loop.create_task(begin())

    async def _begin_again(self) -> None:
        self._server = await self._make(socket.socket(fileno=os.dup(self._descriptor)))
        await self._server.start_serving()

    # --- what its owner calls

    @property
    def sockets(self) -> tuple[Any, ...]:
        """As asyncio's servers."""
        return tuple(self._server.sockets)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Its loop."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether it is open, whoever accepts at the moment."""
        return not self._closed

    async def start_serving(self) -> None:
        """Nothing: the agent says when."""

    async def serve_forever(self) -> None:
        """Return when it is closed or this is cancelled, not when another process accepts."""
        self._forever = self._loop.create_future()
        try:
            await self._forever
        finally:
            self.close()
            await self.wait_closed()

    def close(self) -> None:
        """Accept no more, whoever is dead."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        self._server.close()
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()

    async def wait_closed(self) -> None:
        """As asyncio's servers."""
        await self._server.wait_closed()

    def __getattr__(self, name: str) -> Any:
        """What later Pythons have besides."""
        return getattr(self._server, name)


def install(agent: Agent) -> None:
    """Have all loops of this process give VIPs to *agent*."""
    classes: list[Any] = [BaseEventLoop]
    with contextlib.suppress(ImportError):
        classes.append(importlib.import_module("uvloop").Loop)
    for loop_class in classes:
        _wrap_datagrams(loop_class, agent)
        _wrap_server(loop_class, agent)


def _complete(loop: asyncio.AbstractEventLoop, agent: Agent) -> None:
    if agent.complete:
        loop.call_soon(agent.serve, loop)


def _wrap_datagrams(loop_class: Any, agent: Agent) -> None:
    original = loop_class.create_datagram_endpoint

    async def create_datagram_endpoint(
        self: asyncio.AbstractEventLoop, protocol_factory: Any, *args: Any, **options: Any
    ) -> Any:
        sock: socket.socket | None = options.get("sock")
        number = None if sock is None else agent.vip_of(sock)
        if number is None:
            return await original(self, protocol_factory, *args, **options)
        protocol = protocol_factory()
        transport = VipTransport(self, protocol, agent, number)
        protocol.connection_made(transport)
        _complete(self, agent)
        return transport, protocol

    loop_class.create_datagram_endpoint = create_datagram_endpoint


def _wrap_server(loop_class: Any, agent: Agent) -> None:
    original = loop_class.create_server

    async def create_server(
        self: asyncio.AbstractEventLoop, protocol_factory: Any, *args: Any, **options: Any
    ) -> Any:
        sock: socket.socket | None = options.get("sock")
        number = None if sock is None else agent.vip_of(sock)
        if sock is None or number is None:
            return await original(self, protocol_factory, *args, **options)
        if options.get("start_serving") is False:
            raise ConfigError("a server that begins to accept later can't be taken over")

        async def make(sock: socket.socket) -> Any:
            wanted = options | {"sock": sock, "start_serving": False}
            return await original(self, protocol_factory, *args, **wanted)

        server = VipServer(self, make, await make(sock), sock, options.get("backlog", _BACKLOG))
        agent.accepting(number, server)
        _complete(self, agent)
        return server

    loop_class.create_server = create_server
