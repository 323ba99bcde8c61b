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
from typing import NoReturn

from sockway.lab.servers.identity import identity, inherited_sockets, notify_ready

BATCH = 64


def _answer(sock: socket.socket, prefix: bytes) -> None:
    """Answer what waits in *sock*, some of it: other sockets want their turn."""
    for _ in range(BATCH):
        try:
            data, peer = sock.recvfrom(2048)
        except (BlockingIOError, ConnectionRefusedError):
            return
        with contextlib.suppress(OSError):
            sock.sendto(prefix + data, peer)


def main() -> NoReturn:
    """Serve until SIGTERM."""
    sockets = inherited_sockets()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    prefix = identity().encode() + b" "
    with selectors.DefaultSelector() as selector:
        for sock in sockets:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        notify_ready()
        print("echo ready", flush=True)  # noqa: T201 (that line is what the parent waits for)
        while True:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)  # noqa: S101 (only those registered)
                _answer(key.fileobj, prefix)


if __name__ == "__main__":
    main()
