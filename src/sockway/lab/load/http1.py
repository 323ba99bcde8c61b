"""HTTP/1.1 clients: a connection for each request, keep-alive, or long downloads.

Task: ``targets`` [[host, port]...], ``mode`` ("connection", "keepalive",
"download"), ``clients``, ``rate`` (requests a second of all together; 0: each client
as fast as it is answered), ``timeout`` (s, of a request with its connection), ``path``.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from sockway.lab.content import Checker
from sockway.lab.load.exchange import Connection, ExchangeError
from sockway.lab.load.harness import Control, run
from sockway.lab.tally import Outcome


@dataclass(frozen=True)
class Task:
    """What the clients of this process do; see the head of this file."""

    targets: list[tuple[str, int]]
    mode: str = "connection"
    clients: int = 64
    rate: float = 1000.0
    timeout: float = 10.0
    path: str = "/"


class Client:
    """One client: at most one request under way."""

    def __init__(self, task: Task, control: Control, number: int) -> None:
        """The client *number* of the process; its target follows from that."""
        self.task = task
        self.control = control
        self.host, self.port = task.targets[number % len(task.targets)]
        keep = task.mode == "keepalive"
        connection = "keep-alive" if keep else "close"
        self.request = (
            f"GET {task.path} HTTP/1.1\r\nHost: lab\r\nConnection: {connection}\r\n\r\n".encode()
        )
        self.connection: Connection | None = None

    async def _exchange(self) -> None:
        """One request on a connection that serves; raises `ExchangeError`."""
        connection = self.connection
        end = time.monotonic() + self.task.timeout
        if connection is None or not connection.open:
            connection = self.connection = Connection()
            await connection.connect(self.host, self.port, timeout=self.task.timeout)
        left = max(end - time.monotonic(), 0.0)
        if self.task.mode == "download":
            checker = Checker()
            await connection.exchange(self.request, checker.feed, timeout=left)
            if not checker.intact:
                raise ExchangeError(Outcome.CORRUPT, "body")
            return
        body = bytearray()
        await connection.exchange(self.request, body.extend, timeout=left)
        # ``pid generation worker``; nginx says only the first
        words = bytes(body).split()
        self.control.tally.answered_by[words[1 if len(words) > 1 else 0].decode()] += 1

    async def once(self, due: float) -> None:
        """One request that is due at that moment, counted."""
        try:
            await self._exchange()
        except ExchangeError as error:
            self.control.count(error.outcome, due)
            self.control.tally.note(str(error))
            self._drop()
            # A server that refuses is not asked a thousand times a second.
            await self.control.pause_until(time.monotonic() + 0.01)
        else:
            self.control.count(Outcome.OK, due)
            if self.connection is not None and not (
                self.task.mode == "keepalive" and self.connection.keep
            ):
                self._drop()

    def _drop(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    async def run(self, first: float, pause: float) -> None:
        """Request from *first* on, every *pause* seconds, until it is time to stop."""
        due = first
        while await self.control.pause_until(due):
            await self.once(due)
            # Without a pause there is no schedule to be behind.
            due = self.control.skip(due, pause) if pause else time.monotonic()
        self._drop()


async def work(fields: dict[str, Any], control: Control) -> None:
    """Run all clients of this process."""
    task = Task(**fields)
    pause = task.clients / task.rate if task.rate else 0.0
    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(task.clients):
            first = start + (pause or 1.0) * number / task.clients
            group.create_task(Client(task, control, number).run(first, pause))


if __name__ == "__main__":
    run(work)
