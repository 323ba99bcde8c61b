"""Tells a number to whoever connects, until a pipe is let go: `crash_worker.py NUMBER PIPE FD...`.

A script of its own, so that it starts fast.
"""

from __future__ import annotations

import select
import socket
import sys


def main() -> None:
    """Serve."""
    number, leash = sys.argv[1], int(sys.argv[2])
    listeners = [socket.socket(fileno=int(fd)) for fd in sys.argv[3:]]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not select.select([leash], [], [], 0)[0]:
        select.select([leash, *(listener.fileno() for listener in listeners)], [], [])
        for listener in select.select(listeners, [], [], 0)[0]:
            with listener.accept()[0] as connection:
                connection.sendall(number.encode())


if __name__ == "__main__":
    main()
