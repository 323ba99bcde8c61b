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
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol
from urllib.parse import parse_qs, urlsplit

from sockway.drain.flag import CALM, DRAINING
from sockway.drain.flag import VARIABLE as DRAIN_VARIABLE
from sockway.errors import ConfigError
from sockway.takeover.forward import Address, Inbox, Owner, Peers, vip_id
from sockway.takeover.handover import (
    Answers,
    Asker,
    Conversation,
    RefusedError,
    Taken,
    ask_for_handover,
    listen,
)
from sockway.takeover.routing import ByAddress, ByConnectionId, Router
from sockway.takeover.starting import vip_key

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

    def start(self) -> None:
        """Accept; until then it does not."""
        ...

    def stop(self) -> None:
        """Accept no more; what waits is left for others."""
        ...

    def resume(self) -> None:
        """Accept again."""
        ...


class Udp:
    """A UDP VIP."""

    def __init__(self, key: str, sock: socket.socket, router: Router) -> None:
        """Nobody gets its packets yet."""
        self.key = key
        self.id = vip_id(key)
        self.socket = sock
        self.router = router
        self.deliver: Callable[[bytes, Address], None] = lambda _data, _peer: None
        self.is_read = False

    @property
    def table(self) -> str:
        """What its flows are called in a handover: other routers can't use them."""
        return f"{self.key} {self.router.kind}"


class Agent:
    """This process's part in takeovers."""

    def __init__(
        self, directory: Path, generation: int, worker: int, urls: list[str], taken: Taken | None
    ) -> None:
        """Take the VIPs, and what was taken from the process before, if anything was."""
        self.me = Owner(generation & 0xFF, worker)
        self._generation = generation
        self._directory = directory
        self._urls = urls
        self._vips = [vip_key(url) for url in urls]
        self._taken = taken
        self._descriptors: list[int] = []
        self._udp: dict[int, Udp] = {}
        self._by_id: dict[int, Udp] = {}
        self._acceptors: dict[int, Acceptor] = {}
        self._loop: Loop | None = None
        self._control: socket.socket | None = None
        self._conversations: list[Conversation] = []
        self._has_successor = False
        self.peers = Peers(directory)
        self.inbox = Inbox(directory, self.me)
        self._counters = _counters_page(directory, self.me)
        # The process before in this place may have died: it counts all the same.
        self.peers.forwarded, self.inbox.received, self.peers.dropped = _COUNTERS.unpack(
            self._counters
        )
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
        udp = Udp(self._vips[number], sock, self._router(self._urls[number]))
        udp.deliver = deliver
        self._udp[number] = self._by_id[udp.id] = udp
        return sock

    def accepting(self, number: int, acceptor: Acceptor) -> None:
        """A server is ready to accept on a TCP VIP; it is started when this process serves."""
        self._acceptors[number] = acceptor
        if self.is_serving:
            acceptor.start()

    @property
    def complete(self) -> bool:
        """Whether a server is ready for each VIP."""
        return len(self._udp) + len(self._acceptors) == len(self._urls)

    @property
    def is_serving(self) -> bool:
        """Whether this process reads and accepts."""
        return self._loop is not None and not self._has_successor

    def serve(self, loop: Loop) -> None:
        """Take over from the process before, and be there for the next; or end this process."""
        if self._loop is not None:
            return
        self._loop = loop
        flows = {}
        if self._taken is not None:
            asker = Asker(self._generation, self._vips)
            try:
                flows = ask_for_handover(self._taken, self._directory, self.me.worker, asker)
            except RefusedError as error:
                _give_up(f"takeover: generation {self._generation} can't take over: {error}")
        for udp in self._udp.values():
            udp.router.take(flows.get(udp.table, []))
        loop.add_reader(self.inbox.socket.fileno(), self._inbox_readable)
        self._listen()
        self._read_vips()
        for acceptor in self._acceptors.values():
            acceptor.start()
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
            elif self.peers.send(owner, udp.id, data, peer):
                forwarded = True
            else:
                router.orphaned(data, peer)
                deliver(data, peer)
        if forwarded:
            self._count()

    def _inbox_readable(self) -> None:
        self.inbox.read(self._forwarded)
        self._count()

    def _forwarded(self, vip: int, data: bytes, peer: Address) -> None:
        udp = self._by_id.get(vip)
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
            answers = Answers(self._generation, self._give, self._hand_over, self._resume)
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

    def _hand_over(self, asker: Asker) -> dict[str, list[Any]]:
        """Read and accept no more; all that is known of flows.

        What is not the successor's goes with this process: a TCP VIP is closed for good, so that
        no connection waits there for nobody; a UDP VIP is read on, for its flows.
        """
        assert self._loop is not None  # noqa: S101 - serve() has set it
        if self._has_successor:
            raise RefusedError("another process has taken over already")
        if asker.generation < self._generation:
            raise RefusedError(f"generation {self._generation} serves already")
        self._has_successor = True
        for udp in self._udp.values():
            if udp.key in asker.vips:
                self._loop.remove_reader(udp.socket.fileno())
                udp.is_read = False
        for number, acceptor in self._acceptors.items():
            acceptor.stop()
            if self._vips[number] not in asker.vips:
                self._close(number)
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        self._say("succeeded")
        _set_drain_flag(DRAINING)
        return {udp.table: udp.router.export(self.peers.is_there) for udp in self._udp.values()}

    def _close(self, number: int) -> None:
        # Copies of a listening socket are anybody's: shut, it leaves the port whoever has it.
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self._descriptors[number])) as sock,
        ):
            sock.shutdown(socket.SHUT_RDWR)

    def _say(self, what: str) -> None:
        """Tell the process before, which cares for this one's end."""
        if self._taken is not None:
            with contextlib.suppress(OSError):
                self._taken.connection.sendall(json.dumps({"say": what}).encode() + b"\n")

    def _resume(self) -> None:
        """The process that took over is dead: go on as before."""
        self._has_successor = False
        self._say("resumed")
        _set_drain_flag(CALM)
        for acceptor in self._acceptors.values():
            acceptor.resume()
        self._listen()
        self._read_vips()

    def _read_vips(self) -> None:
        assert self._loop is not None  # noqa: S101 - serve() has set it
        for udp in self._udp.values():
            if not udp.is_read:
                self._loop.add_reader(udp.socket.fileno(), self._readable, udp)
                udp.is_read = True


def counters(directory: Path) -> dict[str, int]:
    """What all processes of a directory have forwarded, dead ones too."""
    total = dict.fromkeys(COUNTER_NAMES, 0)
    for file in directory.glob("*.counters"):
        for name, value in zip(COUNTER_NAMES, _COUNTERS.unpack(file.read_bytes()), strict=True):
            total[name] += value
    return total


def _counters_page(directory: Path, me: Owner) -> mmap.mmap:
    path = directory / f"{me.generation}.{me.worker}.counters"
    path.touch()
    os.truncate(path, _COUNTERS.size)
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), _COUNTERS.size)


def _give_up(why: str) -> NoReturn:
    # It has served nobody. Whatever its server does when it ends might take as long as it likes.
    print(why, file=sys.stderr, flush=True)  # noqa: T201 - the supervisor shows it
    os._exit(1)


def _set_drain_flag(value: bytes) -> None:
    path = os.environ.get(DRAIN_VARIABLE)
    if path:
        with contextlib.suppress(OSError), open(path, "r+b") as file:  # noqa: PTH123
            file.write(value)
