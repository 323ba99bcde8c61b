"""Who takes a VIP's datagrams: one thread that hands them on, or as many as there are workers.

All are the same program: processes that answer each datagram with itself. Each has the same share
of a CPU. What the accepting process reads it deals to the workers in batches, one message for each
worker and batch, so that handing over costs it as little as it can; the workers answer clients
by themselves. A flow stays with its worker, and flows are dealt evenly.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, NoReturn

from sockway.errors import KernelError
from sockway.lab.cpubudget import Budget, budgets
from sockway.lab.servers.late_bind import end_with_parent
from sockway.sockets.service import Service
from sockway.wire.addresses import Vip

Name = Literal["single-acceptor", "reuseport", "sockway"]
PORT: Final = 7000
_BUFFER: Final = 1 << 20
_SO_RCVBUFFORCE: Final = 33
_BATCH: Final = 256
_PART: Final = struct.Struct("!4sHH")
"""In a message to a worker, before each datagram: the client's address and port, the length."""
_LARGEST: Final = 2048


class System(ABC):
    """Processes that answer datagrams, while the block of `running` lasts."""

    def __init__(self, workers: int) -> None:
        """Nothing is started yet."""
        self.workers = workers
        self.pids: list[int] = []

    @abstractmethod
    def roles(self, stack: contextlib.ExitStack) -> list[Callable[[Budget], NoReturn]]:
        """What each process does for ever; all sockets are open."""


class SingleAcceptor(System):
    """One process reads, the others work."""

    def roles(self, stack: contextlib.ExitStack) -> list[Callable[[Budget], NoReturn]]:
        """The accepting process, and the workers."""
        vip = stack.enter_context(_udp(shared=False))
        pairs = [
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(self.workers)
        ]
        for sock in itertools.chain.from_iterable(pairs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            stack.enter_context(sock)
        ends = [end for end, _ in pairs]
        workers = [lambda budget, end=end: _work_handed(end, vip, budget) for _, end in pairs]
        return [lambda budget: _accept(vip, ends, budget), *workers]


class Kernel(System):
    """A socket for each worker, by the kernel's hash."""

    def roles(self, stack: contextlib.ExitStack) -> list[Callable[[Budget], NoReturn]]:
        """The workers."""
        socks = [stack.enter_context(_udp(shared=True)) for _ in range(self.workers)]
        return [_worker(sock) for sock in socks]


class Routed(System):
    """A socket for each worker, by Sockway's router."""

    def roles(self, stack: contextlib.ExitStack) -> list[Callable[[Budget], NoReturn]]:
        """The workers."""
        vip = Vip.parse(f"udp://0.0.0.0:{PORT}?flow=tuple")
        service = stack.enter_context(Service.open("scale", [vip]))
        stack.callback(service.remove)
        generation = stack.enter_context(service.generation(workers=self.workers))
        stack.callback(generation.close, force=True)
        socks = [next(iter(generation.sockets(worker).values())) for worker in range(self.workers)]
        for sock in socks:
            _adjust(sock)
        generation.publish()
        return [_worker(sock) for sock in socks]


_SYSTEMS: Final[dict[Name, type[System]]] = {
    "single-acceptor": SingleAcceptor,
    "reuseport": Kernel,
    "sockway": Routed,
}


@contextlib.contextmanager
def running(name: Name, workers: int, share: float) -> Iterator[tuple[System, bool]]:
    """A system that runs, and whether the kernel bounds its processes (else they do themselves).

    Raises:
        SockwayError: it can't be had here.

    """
    system = _SYSTEMS[name](workers)
    with contextlib.ExitStack() as stack:
        roles = system.roles(stack)
        # The budgets go last: a group can't be removed before its process has ended.
        shares = stack.enter_context(budgets(len(roles), share))
        stack.callback(_end, system.pids)
        for role, budget in zip(roles, shares, strict=True):
            system.pids.append(_start(role, budget))
        yield system, shares[0].group is not None


def cpu_seconds(system: System) -> float:
    """CPU time of all its processes, each of which is one thread."""
    total = 0
    for pid in system.pids:
        total += int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0])
    return total / 1e9


def _start(role: Callable[[Budget], NoReturn], budget: Budget) -> int:
    """A process that has all that is loaded here already: with its share, imports would last."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with_parent()
        budget.enter()
        role(budget)
    finally:
        os._exit(1)


def _end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _udp(*, shared: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind(("0.0.0.0", PORT))  # in a namespace of its own
    except OSError as error:
        sock.close()
        raise KernelError(f"can't bind port {PORT}: {error.strerror}") from error
    _adjust(sock)
    return sock


def _adjust(sock: socket.socket) -> None:
    """Room for what comes while a process waits for its next share, the same for all systems."""
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)


def _waiter(sock: socket.socket) -> Callable[[], object]:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return poll.poll


def _worker(sock: socket.socket) -> Callable[[Budget], NoReturn]:
    return lambda budget: _work(sock, budget)


def _work(sock: socket.socket, budget: Budget) -> NoReturn:
    """Answer what comes to a socket of this worker's own."""
    wait = _waiter(sock)
    while True:
        wait()
        with contextlib.suppress(BlockingIOError):
            for _ in range(_BATCH):
                data, peer = sock.recvfrom(_LARGEST)
                sock.sendto(data, peer)
        budget.pace()


def _accept(vip: socket.socket, workers: list[socket.socket], budget: Budget) -> NoReturn:
    """Read all datagrams, and deal them."""
    wait = _waiter(vip)
    pack, recvfrom = _PART.pack, vip.recvfrom
    flows: dict[tuple[str, int], tuple[list[bytes], bytes]] = {}
    hands: list[list[bytes]] = [[] for _ in workers]
    turns = itertools.cycle(hands)
    while True:
        wait()
        with contextlib.suppress(BlockingIOError):
            for _ in range(_BATCH):
                data, peer = recvfrom(_LARGEST)
                known = flows.get(peer)
                if known is None:
                    known = flows[peer] = next(turns), socket.inet_aton(peer[0])
                hand, address = known
                hand += (pack(address, peer[1], len(data)), data)
        for worker, hand in zip(workers, hands, strict=True):
            if hand:
                # A worker that does not come along loses what there is no room for.
                with contextlib.suppress(BlockingIOError):
                    worker.send(b"".join(hand), socket.MSG_DONTWAIT)
                hand.clear()
        budget.pace()


def _work_handed(end: socket.socket, vip: socket.socket, budget: Budget) -> NoReturn:
    """Answer what the accepting process hands over."""
    end.setblocking(True)
    head = _PART.size
    while True:
        message = end.recv(_BATCH * (_LARGEST + head))
        at = 0
        while at < len(message):
            address, port, length = _PART.unpack_from(message, at)
            at += head + length
            with contextlib.suppress(BlockingIOError):
                vip.sendto(message[at - length : at], (socket.inet_ntoa(address), port))
        budget.pace()
