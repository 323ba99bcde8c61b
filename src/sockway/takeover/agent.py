"""One process of a service that is released by socket takeover.

The agent has the sockets, asks the process before and answers the one after, reads UDP, and
forwards. It runs on any event loop that calls back for a descriptor: asyncio's, uvloop's, a plain
`selectors` loop. All of it is one thread: the loop's.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

from sockway.drain.flag import DRAINING
from sockway.drain.flag import VARIABLE as DRAIN_VARIABLE
from sockway.errors import ConfigError
from sockway.takeover.forward import Address, Inbox, Owner, Peers
from sockway.takeover.handover import Answers, Conversation, Taken, ask_for_handover, listen
from sockway.takeover.routing import ByAddress, ByConnectionId, Router

DIRECTORY: Final = "TAKEOVER_DIRECTORY"
_BATCH: Final = 64
_COUNTERS: Final = struct.Struct("QQQ")
COUNTER_NAMES: Final = ("forwarded", "received", "dropped")


class Loop(Protocol):
    """An event loop, as far as the agent needs one."""

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> Any:
        """Call back whenever a descriptor can be read."""
        ...

    def remove_reader(self, fd: int) -> Any:
        """Do so no more."""
        ...


class Acceptor(Protocol):
    """What accepts on a TCP VIP."""

    def stop(self) -> None:
        """Accept no more; what waits is left for others."""
        ...

    def resume(self) -> None:
        """Accept again."""
        ...


class Udp:
    """A UDP VIP."""

    def __init__(self, number: int, sock: socket.socket, router: Router) -> None:
        """Nobody gets its packets yet."""
        self.number = number
        self.socket = sock
        self.router = router
        self.deliver: Callable[[bytes, Address], None] = lambda _data, _peer: None


class Agent:
    """This process's part in takeovers."""

    def __init__(
        self, directory: Path, generation: int, worker: int, urls: list[str], taken: Taken | None
    ) -> None:
        """Take the VIPs, and what was taken from the process before, if anything was."""
        self.me = Owner(generation & 0xFF, worker)
        self._directory = directory
        self._urls = urls
        self._taken = taken
        self._descriptors: list[int] = []
        self._udp: dict[int, Udp] = {}
        self._acceptors: dict[int, Acceptor] = {}
        self._loop: Loop | None = None
        self._control: socket.socket | None = None
        self._conversations: list[Conversation] = []
        self.peers = Peers(directory)
        self.inbox = Inbox(directory, self.me)
        self._counters = _counters_page(directory, self.me)
        self.on_serving: Callable[[], None] = lambda: None

    def sockets(self, descriptors: list[int]) -> None:
        """The sockets of all VIPs; the agent keeps copies, for servers close theirs."""
        self._descriptors = [os.dup(descriptor) for descriptor in descriptors]

    def vip_of(self, sock: socket.socket) -> int | None:
        """Which VIP a socket is, or a copy of it."""
        wanted = os.fstat(sock.fileno()).st_ino
        for number, descriptor in enumerate(self._descriptors):
            if os.fstat(descriptor).st_ino == wanted:
                return number
        return None

    # --- what servers tell

    def datagrams(self, number: int, deliver: Callable[[bytes, Address], None]) -> socket.socket:
        """A server is ready for a UDP VIP; the socket to answer by."""
        sock = socket.socket(fileno=os.dup(self._descriptors[number]))
        sock.setblocking(False)
        udp = self._udp[number] = Udp(number, sock, self._router(self._urls[number]))
        udp.deliver = deliver
        return sock

    def accepting(self, number: int, acceptor: Acceptor) -> None:
        """A server accepts on a TCP VIP."""
        self._acceptors[number] = acceptor

    @property
    def complete(self) -> bool:
        """Whether a server is ready for each VIP."""
        return len(self._udp) + len(self._acceptors) == len(self._urls)

    def serve(self, loop: Loop) -> None:
        """Take over from the process before, and be there for the next."""
        self._loop = loop
        flows = {}
        if self._taken is not None:
            flows = ask_for_handover(self._taken.connection)
        for udp in self._udp.values():
            udp.router.take(flows.get(self._urls[udp.number], []))
        loop.add_reader(self.inbox.socket.fileno(), self._inbox_readable)
        self._listen()
        self._read_vips()
        self.on_serving()

    # --- the way of a packet

    def _readable(self, udp: Udp) -> None:
        sock, router, deliver = udp.socket, udp.router, udp.deliver
        forwarded = False
        for _ in range(_BATCH):
            try:
                data, peer = sock.recvfrom(65_535)
            except (BlockingIOError, ConnectionRefusedError):
                break
            owner = router.owner(data, peer)
            if owner is None:
                deliver(data, peer)
            elif self.peers.send(owner, udp.number, data, peer):
                forwarded = True
            else:
                router.orphaned(data, peer)
                deliver(data, peer)
        if forwarded:
            self._count()

    def _inbox_readable(self) -> None:
        self.inbox.read(self._forwarded)
        self._count()

    def _forwarded(self, number: int, data: bytes, peer: Address) -> None:
        udp = self._udp.get(number)
        if udp is not None:
            udp.deliver(data, peer)

    def _count(self) -> None:
        _COUNTERS.pack_into(
            self._counters, 0, self.peers.forwarded, self.inbox.received, self.peers.dropped
        )

    def _router(self, url: str) -> Router:
        options = parse_qs(urlsplit(url).query)
        if options.get("flow") == ["quic"]:
            from sockway.quic.ids import ID_KEY, ID_LENGTH  # noqa: PLC0415 - not all have QUIC

            try:
                key = bytes.fromhex(os.environ[ID_KEY])
                return ByConnectionId(self.me, key, int(os.environ[ID_LENGTH]))
            except (KeyError, ValueError) as error:
                raise ConfigError(
                    f"{url}: no key for connection IDs", hint=f"set {ID_KEY} and {ID_LENGTH}"
                ) from error
        return ByAddress(self.me)

    # --- the next process

    def _listen(self) -> None:
        assert self._loop is not None  # noqa: S101 - serve() has set it
        self._control = listen(self._directory, self.me.worker)
        self._loop.add_reader(self._control.fileno(), self._asked)

    def _asked(self) -> None:
        assert self._control is not None and self._loop is not None  # noqa: S101, PT018
        with contextlib.suppress(OSError):
            connection, _ = self._control.accept()
            connection.setblocking(False)
            answers = Answers(self._give, self._hand_over, self._resume)
            conversation = Conversation(connection, answers)
            self._conversations.append(conversation)
            self._loop.add_reader(connection.fileno(), self._spoken, conversation)

    def _spoken(self, conversation: Conversation) -> None:
        assert self._loop is not None  # noqa: S101 - serve() has set it
        descriptor = conversation.connection.fileno()
        if not conversation.read():
            self._loop.remove_reader(descriptor)
            self._conversations.remove(conversation)

    def _give(self) -> tuple[list[str], list[int]]:
        return self._urls, self._descriptors

    def _hand_over(self) -> dict[str, Any]:
        """Read and accept no more; all that is known of flows."""
        assert self._loop is not None  # noqa: S101 - serve() has set it
        for udp in self._udp.values():
            self._loop.remove_reader(udp.socket.fileno())
        for acceptor in self._acceptors.values():
            acceptor.stop()
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        if self._taken is not None:
            with contextlib.suppress(OSError):
                self._taken.connection.sendall(json.dumps({"say": "succeeded"}).encode() + b"\n")
        _set_drain_flag(DRAINING)
        return {self._urls[udp.number]: udp.router.export() for udp in self._udp.values()}

    def _resume(self) -> None:
        """The process that took over is dead: go on as before."""
        _set_drain_flag(b"0")
        for acceptor in self._acceptors.values():
            acceptor.resume()
        self._listen()
        self._read_vips()

    def _read_vips(self) -> None:
        assert self._loop is not None  # noqa: S101 - serve() has set it
        for udp in self._udp.values():
            self._loop.add_reader(udp.socket.fileno(), self._readable, udp)


def counters(directory: Path) -> dict[str, int]:
    """What all processes of a directory have forwarded, dead ones too."""
    total = dict.fromkeys(COUNTER_NAMES, 0)
    for file in directory.glob("*.counters"):
        for name, value in zip(COUNTER_NAMES, _COUNTERS.unpack(file.read_bytes()), strict=True):
            total[name] += value
    return total


def _counters_page(directory: Path, me: Owner) -> mmap.mmap:
    path = directory / f"{me.generation}.{me.worker}.counters"
    path.write_bytes(bytes(_COUNTERS.size))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), _COUNTERS.size)


def _set_drain_flag(value: bytes) -> None:
    path = os.environ.get(DRAIN_VARIABLE)
    if path:
        with contextlib.suppress(OSError), open(path, "r+b") as file:  # noqa: PTH123
            file.write(value)
