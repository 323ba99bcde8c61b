"""A UDP server whose one accepting process deals what it reads to workers, as without SO_REUSEPORT.

The socket can't be had twice, so a release is a restart. It is as short as that can be: a new
process that is loaded says so, and binds as soon as the old one has let go of the port. Flows
stay with their workers as long as the accepting process lives.

``LAB_BIND='udp://HOST:PORT' LAB_WORKERS=N python -m sockway.lab.servers.accepting``
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import sys
import time
from typing import Final, NoReturn
from urllib.parse import urlsplit

from sockway.lab.servers.identity import identity
from sockway.lab.servers.late_bind import end_with_parent

LOADED: Final = "accepting loaded"
READY: Final = "accepting ready"
_PATIENCE: Final = 20.0
"""Seconds in which the port becomes free."""
_PEER: Final = struct.Struct("!4sH")
_LARGEST: Final = 2048
Peer = tuple[str, int]


def bind(host: str, port: int) -> socket.socket:
    """The port, as soon as nobody else has it.

    Raises:
        OSError: that lasts too long.

    """
    end = time.monotonic() + _PATIENCE
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while True:
        try:
            sock.bind((host, port))
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.0005)
        else:
            return sock


def accept(vip: socket.socket, workers: list[socket.socket]) -> NoReturn:
    """Read all, and deal it."""
    turns = itertools.cycle(workers)
    flows: dict[Peer, tuple[socket.socket, bytes]] = {}
    while True:
        data, peer = vip.recvfrom(_LARGEST)
        known = flows.get(peer)
        if known is None:
            known = flows[peer] = next(turns), _PEER.pack(socket.inet_aton(peer[0]), peer[1])
        known[0].send(known[1] + data)


def work(end: socket.socket, vip: socket.socket, prefix: bytes) -> NoReturn:
    """Answer what is handed over, for as long as there is somebody who does that."""
    while message := end.recv(_LARGEST + _PEER.size):
        address, port = _PEER.unpack_from(message)
        with contextlib.suppress(OSError):
            vip.sendto(prefix + message[_PEER.size :], (socket.inet_ntoa(address), port))
    os._exit(0)


def main() -> NoReturn:
    """Serve until a signal ends this process."""
    end_with_parent()
    place = urlsplit(os.environ["LAB_BIND"])
    pairs = [
        socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for _ in range(int(os.environ["LAB_WORKERS"]))
    ]
    print(LOADED, flush=True)  # noqa: T201 (the parent waits for these lines)
    vip = bind(place.hostname or "", place.port or 0)
    for number, (_, end) in enumerate(pairs):
        if not os.fork():
            try:
                # A worker that had all ends would never see that the other one is gone.
                for mine, others in pairs:
                    mine.close()
                    if others is not end:
                        others.close()
                end_with_parent()
                os.environ["SOCKWAY_WORKER"] = str(number)
                work(end, vip, identity().encode() + b" ")
            finally:
                os._exit(1)
    print(READY, flush=True)  # noqa: T201
    accept(vip, [mine for mine, _ in pairs])


if __name__ == "__main__":
    sys.exit(main())
