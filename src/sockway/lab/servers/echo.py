"""A UDP worker: answers each datagram with ``pid generation worker`` and the datagram.

It owns the sockets that it was handed (LISTEN_FDS), one per VIP. Run it as
``python -m sockway.lab.servers.echo``.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from sockway.lab.servers.identity import identity, inherited_sockets, notify_ready

BATCH = 64


class Loop:
    """The least that an event loop can be."""

    def __init__(self) -> None:
        """Nothing to wait for yet."""
        self._selector = selectors.DefaultSelector()

    def add_reader(self, fd: int, callback: Callable[..., Any], *args: Any) -> None:
        """Call back whenever a descriptor can be read."""
        self._selector.register(fd, selectors.EVENT_READ, partial(callback, *args))

    def remove_reader(self, fd: int) -> None:
        """Do so no more."""
        self._selector.unregister(fd)

    def run(self) -> NoReturn:
        """Call back until the process ends."""
        while True:
            for key, _ in self._selector.select():
                key.data()


def _answer(sock: socket.socket, prefix: bytes) -> None:
    """Answer what waits in *sock*, some of it: other sockets want their turn."""
    for _ in range(BATCH):
        try:
            data, peer = sock.recvfrom(2048)
        except (BlockingIOError, ConnectionRefusedError):
            return
        with contextlib.suppress(OSError):
            sock.sendto(prefix + data, peer)


def agent_here() -> Any:
    """The agent of a takeover, if this process has one: it reads then, and not the server."""
    run = sys.modules.get("sockway.takeover.run")
    return run.agent_here() if run else None


def echo_on(loop: Any, sock: socket.socket, prefix: bytes, agent: Any = None) -> None:
    """Answer all that comes in by a socket, from now on; with an agent, when it serves."""
    if agent is None:
        loop.add_reader(sock.fileno(), _answer, sock, prefix)
        return

    def deliver(data: bytes, peer: Any) -> None:
        with contextlib.suppress(OSError):
            sock.sendto(prefix + data, peer)

    agent.datagrams(agent.vip_of(sock), deliver)


def main() -> NoReturn:
    """Serve until SIGTERM."""
    sockets = inherited_sockets()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    prefix = identity().encode() + b" "
    loop = Loop()
    agent = agent_here()
    for sock in sockets:
        sock.setblocking(False)
        echo_on(loop, sock, prefix, agent)
    if agent is not None:
        agent.serve(loop)
    notify_ready()
    print("echo ready", flush=True)  # noqa: T201 (that line is what the parent waits for)
    loop.run()


if __name__ == "__main__":
    main()
