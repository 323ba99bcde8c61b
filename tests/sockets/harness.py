"""Generations whose sockets stay in the test, so that it can see which one got a packet."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from sockway import Generation, Service, Vip

PATIENCE = 2.0
"""Seconds that a packet on loopback may take on a busy machine."""


@dataclass(frozen=True)
class Receipt:
    """Who got a packet."""

    generation: int
    worker: int
    payload: bytes
    source: tuple[str, int]

    @property
    def owner(self) -> tuple[int, int]:
        """Generation and worker."""
        return self.generation, self.worker


class Receivers:
    """All sockets of some generations, read by the test itself."""

    def __init__(self) -> None:
        """Start with none."""
        self._selector = selectors.DefaultSelector()
        self._stack = ExitStack()
        self._generations: list[Generation] = []

    def add(self, generation: Generation) -> Generation:
        """Read this generation's sockets too."""
        self._generations.append(generation)
        for worker in range(generation.workers):
            self.add_worker(generation, worker, generation.sockets(worker))
        return generation

    def add_worker(
        self, generation: Generation, worker: int, sockets: dict[Vip, socket.socket]
    ) -> None:
        """Read these sockets of a generation that was added."""
        for vip, sock in sockets.items():
            sock.setblocking(False)
            self._selector.register(
                sock, selectors.EVENT_READ, (generation.number, worker, vip.protocol)
            )

    def forget(self, generation: Generation, worker: int | None = None) -> None:
        """Close this process's sockets of it: as if its process (or one worker) had died."""
        for key in list(self._selector.get_map().values()):
            number, of_worker, _ = key.data
            if number == generation.number and worker in {None, of_worker}:
                self._selector.unregister(key.fileobj)
        for held in self._generations:
            if held.number == generation.number and held.service is generation.service:
                for each in range(held.workers) if worker is None else [worker]:
                    held.release_sockets(each)

    def receive(self, patience: float = PATIENCE) -> Receipt | None:
        """The next packet or connection, or None if none comes."""
        for key, _ in self._selector.select(patience):
            number, worker, protocol = key.data
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if protocol == "udp":
                payload, source = sock.recvfrom(65536)
            else:
                connection, source = sock.accept()
                self._stack.enter_context(connection)
                payload = b""
            return Receipt(number, worker, payload, source[:2])
        return None

    def expect(self) -> Receipt:
        """The next packet or connection."""
        receipt = self.receive()
        assert receipt is not None, "nothing came"
        return receipt

    def drain(self, count: int) -> list[Receipt]:
        """The next `count` packets, whoever gets them."""
        return [self.expect() for _ in range(count)]

    def close(self) -> None:
        """Close what was accepted, and the generations' sockets."""
        self._stack.close()
        self._selector.close()
        for generation in self._generations:
            generation.release_all()


def publish(service: Service, receivers: Receivers, workers: int = 2) -> Generation:
    """Open a generation, read its sockets, publish it."""
    generation = receivers.add(service.generation(workers=workers))
    generation.publish()
    return generation


def client(vip: Vip, source: str | None = None, port: int = 0) -> socket.socket:
    """An unconnected UDP socket that can reach the VIP."""
    sock = socket.socket(
        socket.AF_INET6 if vip.address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM
    )
    if source is not None or port:
        sock.bind((source or ("::1" if vip.address.version == 6 else "127.0.0.1"), port))
    return sock


def target(vip: Vip) -> tuple[str, int]:
    """Where a client sends to reach the VIP on this host."""
    if vip.is_wildcard:
        return ("::1" if vip.address.version == 6 else "127.0.0.1", vip.port)
    return str(vip.address), vip.port


def owners(receipts: Iterable[Receipt]) -> set[tuple[int, int]]:
    """Who got any of these."""
    return {receipt.owner for receipt in receipts}
