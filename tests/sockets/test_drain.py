"""Drains: what a generation still has, as the kernel and the flow table tell it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sockway import DrainProgress, Generation, Vip
from sockway.sockets.flows import flows_by_generation
from tests.sockets.conftest import Open
from tests.sockets.harness import Receivers, client, publish, target

pytestmark = pytest.mark.root

TCP, UDP = Vip.parse("tcp://127.0.0.1:5000"), Vip.parse("udp://127.0.0.1:5000")

SERVER = """
import socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
taken = [listener.accept()[0] for _ in range(int(sys.argv[2]))]
print("taken", flush=True)
sys.stdin.readline()
for each in taken:
    each.recv(100)
print("read", flush=True)
sys.stdin.readline()
"""


class Worker:
    """A process that has accepted some connections, then reads from them, then ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Use this process."""
        self.process = process

    def heard(self, word: str) -> bool:
        """Whether this is what it says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip() == word

    def go_on(self) -> None:
        """Let it take its next step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Let it end."""
        self.process.communicate("\n\n", timeout=20)


@contextlib.contextmanager
def worker(generation: Generation, connections: int) -> Iterator[Worker]:
    """A process that has the first worker's listener and accepts so many connections."""
    listener = generation.sockets(0)[TCP].fileno()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(listener), str(connections)],
        pass_fds=[listener], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield Worker(process)
        finally:
            process.kill()


def test_a_drain_sees_queues_unread_bytes_and_connections(open_service: Open) -> None:
    """From the accept queue to the process that serves it, to its end."""
    service = open_service(TCP)
    with contextlib.ExitStack() as stack:
        generation = service.generation()
        stack.callback(generation.release_all)
        generation.publish()
        assert generation.drain_progress().done
        clients = [stack.enter_context(socket.create_connection(target(TCP))) for _ in range(3)]
        queued = generation.drain_progress()
        assert (queued.accept_queue, queued.connections, queued.packets) == (3, 0, 3)
        assert not queued.settled
        serving = stack.enter_context(worker(generation, 3))
        assert serving.heard("taken")
        served = generation.drain_progress()
        assert (served.accept_queue, served.connections, served.unread) == (0, 3, 0)
        assert served.settled
        assert not served.done
        clients[0].sendall(b"request")
        assert generation.drain_progress().unread == 1
        serving.go_on()
        for each in clients[1:]:
            each.sendall(b"request")
        assert serving.heard("read")
        assert generation.drain_progress().settled
        assert generation.processes() == {serving.process.pid}
        serving.end()
        assert generation.drain_progress().done


def test_connections_are_their_own_generation_s(open_service: Open) -> None:
    """Two generations' workers serve the same port, and each drain counts its own."""
    service = open_service(TCP)
    with contextlib.ExitStack() as stack:
        generations = []
        for count in (1, 2):
            generation = service.generation()
            stack.callback(generation.release_all)
            generation.publish()
            serving = stack.enter_context(worker(generation, count))
            for _ in range(count):
                stack.enter_context(socket.create_connection(target(TCP)))
            assert serving.heard("taken")
            generation.release_sockets(0)
            generations.append(generation)
        assert [g.drain_progress().connections for g in generations] == [1, 2]


def test_a_drain_ends_at_its_deadline(open_service: Open) -> None:
    """What is left then is told; each look of it came by."""
    service = open_service(TCP)
    with contextlib.ExitStack() as stack:
        generation = service.generation()
        stack.callback(generation.release_all)
        generation.publish()
        stack.enter_context(socket.create_connection(target(TCP)))
        looks: list[DrainProgress] = []
        last = generation.drain(0.5, looks.append)
        assert looks[-1] is last
        assert last.expired
        assert last.accept_queue == 1
        assert 0.5 <= last.elapsed < 5
        assert len(looks) >= 2
        assert not any(look.expired for look in looks[:-1])
        assert [look.elapsed for look in looks] == sorted(look.elapsed for look in looks)


async def test_an_asyncio_drain_ends_with_the_last_connection(open_service: Open) -> None:
    """The loop runs on between two looks, and the drain is done before its deadline."""
    service = open_service(TCP)
    with contextlib.ExitStack() as stack:
        generation = service.generation()
        stack.callback(generation.release_all)
        generation.publish()
        connection = stack.enter_context(socket.create_connection(target(TCP)))
        serving = stack.enter_context(worker(generation, 1))
        assert serving.heard("taken")
        seen = []
        async for progress in generation.adraining(20, 0.05):
            seen.append(progress.connections)
            if len(seen) == 3:
                connection.close()
                serving.end()
        assert seen[:3] == [1, 1, 1]
        assert seen[-1] == 0
        assert (await generation.adrain(5)).done


def test_flows_hold_up_a_drain_while_they_are_in_use(
    open_service: Open, receivers: Receivers
) -> None:
    """Each generation's flows are counted by the table; a closed generation waits for none."""
    service = open_service(UDP)
    with contextlib.ExitStack() as stack:
        for number in (1, 2):
            publish(service, receivers)
            for _ in range(5 * number):
                sock = stack.enter_context(client(UDP))
                sock.sendto(b"x", target(UDP))
                receivers.expect()
        assert flows_by_generation(service.state) == {1: 5, 2: 10}
        first = service.get(1)
        assert (first.drain_progress().flows, service.get(2).drain_progress().flows) == (5, 10)
        assert first.drain(0.1).expired
        counters = service.counters()
        assert [sum(w.new_flows for w in counters.workers[n]) for n in (1, 2)] == [5, 10]
        assert counters.total("new_flow") == counters.total("flow_stored") == 15
    receivers.forget(first)
    first.close()
    assert first.drain(5).done


def test_a_generation_without_sockets_is_done(open_service: Open, receivers: Receivers) -> None:
    """Its processes are dead: nothing of TCP can be left."""
    service = open_service(TCP)
    first = publish(service, receivers)
    publish(service, receivers)
    with socket.create_connection(target(TCP)):
        receivers.expect()
        receivers.forget(first)
        assert first.drain(5).done
