"""Connections opened in a loop while generations come and go: none is reset.

Beside it the same with plain SO_REUSEPORT, where some are: the check can fail.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sockway import Generation, Service, Vip
from tests.sockets.conftest import Open
from tests.sockets.harness import target

pytestmark = pytest.mark.root

VIP = Vip.parse("tcp://127.0.0.1:5000")
CLIENTS = 4
EACH = 50
SLOWNESS = 0.003
"""Seconds that a server takes for a connection: some are always in a queue."""


class Echo(threading.Thread):
    """Serves a listener until it is told to stop, and then leaves it as it is."""

    def __init__(self, listener: socket.socket) -> None:
        """Start."""
        super().__init__(name="echo")
        self._listener = listener
        self._stop_asked = threading.Event()
        self.start()

    def run(self) -> None:
        """Accept one at a time, and answer."""
        while not self._stop_asked.is_set():
            if not select.select([self._listener], [], [], 0.01)[0]:
                continue
            with contextlib.suppress(BlockingIOError):
                connection = self._listener.accept()[0]
                with connection:
                    time.sleep(SLOWNESS)
                    connection.settimeout(10)
                    connection.sendall(connection.recv(16))

    def stop(self) -> None:
        """Accept no more; what is in the queue stays there."""
        self._stop_asked.set()
        self.join()


@contextlib.contextmanager
def serving(listeners: list[socket.socket]) -> Iterator[None]:
    """The listeners are served while the block lasts."""
    for listener in listeners:
        listener.setblocking(False)
    servers = [Echo(listener) for listener in listeners]
    try:
        yield
    finally:
        for server in servers:
            server.stop()


def load(release: Callable[[], None]) -> tuple[int, int]:
    """Open connections from several threads, releasing all the while: resets, and releases."""
    failures: list[OSError] = []

    def ask() -> None:
        for _ in range(EACH):
            try:
                with socket.create_connection(target(VIP), timeout=10) as sock:
                    sock.sendall(b"x")
                    assert sock.recv(16) == b"x"
            except OSError as error:
                failures.append(error)

    clients = [threading.Thread(target=ask, name="client") for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    releases = 0
    while any(client.is_alive() for client in clients):
        release()
        releases += 1
    for client in clients:
        client.join()
    assert all(isinstance(failure, ConnectionResetError) for failure in failures), failures
    return len(failures), releases


def test_no_connection_is_reset_by_a_release(open_service: Open) -> None:
    """Published and closed under load, with connections in the queues: nobody notices."""
    service: Service = open_service(VIP)
    with contextlib.ExitStack() as stack:

        def release() -> None:
            generation = service.generation(workers=2)
            new = stack.enter_context(contextlib.ExitStack())
            new.enter_context(serving([generation.sockets(w)[VIP] for w in range(2)]))
            before = service.published
            generation.publish()
            if before is not None:
                old[-1].close()  # the servers stop; connections wait in their queues
                opened[-1].close()
            old.append(new)
            opened.append(generation)

        old: list[contextlib.ExitStack] = []
        opened: list[Generation] = []
        release()
        resets, releases = load(release)
        old[-1].close()
        migrated = service.counters().total("migrated")
        opened[-1].release_all()
    assert resets == 0
    assert releases > 3
    assert migrated > 0


def test_the_same_without_the_router_resets_some(inside: object) -> None:
    """Plain SO_REUSEPORT: what waits in the queue of a listener that closes is lost."""
    del inside

    def bind() -> list[socket.socket]:
        made = []
        for _ in range(2):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(target(VIP))
            sock.listen(4096)
            made.append(sock)
        return made

    with contextlib.ExitStack() as stack:
        running: list[tuple[contextlib.ExitStack, list[socket.socket]]] = []

        def release() -> None:
            listeners = bind()
            new = stack.enter_context(contextlib.ExitStack())
            new.enter_context(serving(listeners))
            if running:
                servers, closing = running[-1]
                servers.close()
                for sock in closing:
                    sock.close()
            running.append((new, listeners))

        release()
        resets, _ = load(release)
        running[-1][0].close()
        for sock in running[-1][1]:
            sock.close()
    assert resets > 0
