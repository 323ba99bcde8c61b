"""A small HTTP server for tests: one thread for each connection, and what goes wrong on demand.

It answers `PID GENERATION WORKER` and the environment that it got (`/env`). Options by environment:

    LITTLE_READY    notify (default), late:SECONDS, never, die, line
    LITTLE_STUBBORN 1: SIGTERM is ignored
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time

_stopping = threading.Event()


def serve(connection: socket.socket) -> None:
    """Answer one request after another."""
    with connection, connection.makefile("rb") as lines:
        while request := lines.readline():
            while lines.readline().strip():
                pass
            path = request.split()[1].decode()
            if path == "/exit":
                os._exit(3)
            names = ("SOCKWAY_GENERATION", "SOCKWAY_WORKER")
            body = f"{os.getpid()} {' '.join(os.environ.get(n, '-') for n in names)}".encode()
            if path == "/env":
                body = json.dumps({**os.environ, "uid": os.getuid()}).encode()
            if path.startswith("/slow/"):
                time.sleep(float(path.removeprefix("/slow/")))
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)
            return


def accept(listener: socket.socket) -> None:
    """Serve what comes until told to stop."""
    listener.settimeout(0.05)
    while not _stopping.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.settimeout(30)
        threading.Thread(target=serve, args=(connection,)).start()


def tell(message: str) -> None:
    """sd_notify."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(os.environ["NOTIFY_SOCKET"])
        sock.send(message.encode())


def main() -> None:
    """Listen on what was passed."""
    ready = os.environ.get("LITTLE_READY", "notify")
    stubborn = os.environ.get("LITTLE_STUBBORN") == "1"
    stop = signal.SIG_IGN if stubborn else lambda *_: _stopping.set()
    signal.signal(signal.SIGTERM, stop)
    if ready == "die":
        sys.stderr.write("little: there is no database\n")
        sys.exit(7)
    if ready.startswith("late:"):
        time.sleep(float(ready.removeprefix("late:")))
    listeners = [socket.socket(fileno=3 + at) for at in range(int(os.environ["LISTEN_FDS"]))]
    if ready != "never":
        for listener in listeners:
            if listener.type == socket.SOCK_STREAM:
                threading.Thread(target=accept, args=(listener,)).start()
        if ready == "line":
            print("little is up", flush=True)  # noqa: T201 - that line is waited for
        else:
            tell("READY=1")
    while not _stopping.wait(0.5):
        pass


if __name__ == "__main__":
    main()
