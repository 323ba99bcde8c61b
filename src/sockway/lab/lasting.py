"""Connections that last: opened once, used now and then, and what became of each."""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from sockway.errors import SockwayError
from sockway.lab.network import Node
from sockway.lab.patience import patient

ESTABLISH: Final = 10.0
"""Seconds that all connections together may take to come about."""
_QUESTION: Final = b"?\n"


@dataclass(eq=False)
class Lasting:
    """One connection, or one UDP flow."""

    sock: socket.socket
    owner: bytes = b""
    """The backend that answered first."""
    fate: str = "alive"
    """`alive`, or why it ended: `reset`, `closed`, `silent`, `moved` (another one answered)."""


class LastingConnections:
    """Many of them, from hosts of a lab to VIPs. Closing ends them all."""

    def __init__(self, members: list[Lasting]) -> None:
        """Take sockets that are connected already; see `open`."""
        self.members = members

    def renew(self, nodes: Sequence[Node], targets: Sequence[tuple[str, int]], leaving: int) -> int:
        """Have so many end as clients end them, and open new ones for all that are gone.

        Returns:
            how many were opened.

        Raises:
            SockwayError: not all came about.

        """
        alive = [each for each in self.members if each.fate == "alive"]
        for each in alive[:leaving]:  # the eldest
            each.sock.close()
        kept = alive[leaving:]
        missing = len(self.members) - len(kept)
        self.members = kept
        fresh = type(self).open(nodes, targets, missing)
        self.members += fresh.members
        return missing

    @classmethod
    def open(
        cls,
        nodes: Sequence[Node],
        targets: Sequence[tuple[str, int]],
        count: int,
        kind: socket.SocketKind = socket.SOCK_STREAM,
    ) -> Self:
        """Open so many, by turns from these hosts to these targets, and ask each who serves it.

        Raises:
            SockwayError: not all came about.

        """
        made: list[Lasting] = []
        try:
            for number, node in enumerate(nodes):
                wanted = [targets[i % len(targets)] for i in range(number, count, len(nodes))]
                made += node.run(_opener(wanted, kind))
        except BaseException:
            cls(made).close()
            raise
        if kind == socket.SOCK_STREAM:
            _until_connected(made)
        found = cls(made)
        fates = found.ask(ESTABLISH)
        if fates["alive"] != count:
            found.close()
            raise SockwayError(f"of {count} connections {dict(fates)} came about")
        return found

    def ask(self, timeout: float = 3.0) -> Counter[str]:
        """Have each that is alive ask, and read its answer; what became of all.

        Args:
            timeout: seconds until one that hears nothing counts as silent. TCP sends again after
                0.2 s, 0.4 s, 0.8 s.

        """
        with selectors.DefaultSelector() as selector:
            for each in self.members:
                if each.fate == "alive":
                    _send(each)
                if each.fate == "alive":
                    selector.register(each.sock, selectors.EVENT_READ, each)
            deadline = time.monotonic() + patient(timeout)
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    _receive(key.data)
                    selector.unregister(key.fileobj)
            for key in selector.get_map().values():
                key.data.fate = "silent"
        for each in self.members:
            if each.fate != "alive":
                each.sock.close()
        return self.fates()

    def fates(self) -> Counter[str]:
        """How many are alive, and how the others ended."""
        return Counter(each.fate for each in self.members)

    def owners(self) -> Counter[str]:
        """How many of those alive each backend has."""
        return Counter(each.owner.decode() for each in self.members if each.fate == "alive")

    def close(self) -> None:
        """End them all."""
        for each in self.members:
            each.sock.close()

    def __enter__(self) -> Self:
        """Return itself; all are closed when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """End them all."""
        self.close()


def _opener(
    targets: Iterable[tuple[str, int]], kind: socket.SocketKind
) -> Callable[[], list[Lasting]]:
    def opening() -> list[Lasting]:
        made = []
        for host, port in targets:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.socket(family, kind)
            sock.setblocking(False)
            made.append(Lasting(sock))
            code = sock.connect_ex((host, port))
            if code not in {0, errno.EINPROGRESS}:
                raise SockwayError(f"connect to {host}: {errno.errorcode[code]}")
        return made

    return opening


def _until_connected(members: Sequence[Lasting]) -> None:
    deadline = time.monotonic() + patient(ESTABLISH)
    with selectors.DefaultSelector() as selector:
        for each in members:
            selector.register(each.sock, selectors.EVENT_WRITE)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)


def _send(each: Lasting) -> None:
    try:
        each.sock.send(_QUESTION)
    except OSError as error:
        each.fate = _name(error)


def _receive(each: Lasting) -> None:
    try:
        answer = each.sock.recv(256)
    except OSError as error:
        each.fate = _name(error)
        return
    owner = answer.split(b" ", 1)[0]
    if not answer:
        each.fate = "closed"
    elif each.owner and owner != each.owner:
        each.fate = "moved"
    each.owner = each.owner or owner


def _name(error: OSError) -> str:
    if error.errno in {errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED}:
        return "reset"
    return "silent" if error.errno == errno.ETIMEDOUT else errno.errorcode[error.errno or 0]


__all__ = ["Lasting", "LastingConnections"]
