"""What all client processes have in common: how they are told what to do, and report.

A client process reads its task as one line of JSON on standard input. While it
works it writes a line ``{"requests": n, "failed": n}`` five times a second. It stops
when its time is over, or when standard input ends (so it never outlives its parent),
finishes what it has begun, and writes ``{"tally": ...}`` as its last line.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sockway.lab.sandbox import raise_file_limit
from sockway.lab.tally import Outcome, Tally

PROGRESS_SECONDS = 0.2
BEHIND_SECONDS = 1.0
"""What clients may be behind with their schedule, and still make up for."""


class Control:
    """One client process's view of the experiment."""

    def __init__(self, epoch: float) -> None:
        """*epoch* is the experiment's second 0 on the monotonic clock all processes share."""
        self.epoch = epoch
        self.tally = Tally()
        self.stopping = asyncio.Event()

    def count(self, outcome: Outcome, due: float) -> None:
        """Count *outcome* now, of what was *due* at that moment.

        Not when it was sent: a client that is held up sends late, and whoever waits for it waits
        from when it was due.
        """
        now = time.monotonic()
        took = now - due if outcome is Outcome.OK else None
        self.tally.add(outcome, now - self.epoch, took, due - self.epoch)

    def skip(self, due: float, pause: float) -> float:
        """When the next is due if one was *due* then, and one is every *pause* seconds.

        That may be over already: clients make up for what they are behind. What they are too far
        behind with is left out, and counted as that.
        """
        after = due + pause
        late = time.monotonic() - BEHIND_SECONDS - after
        if late <= 0:
            return after
        if pause:
            self.tally.skipped += late / pause
        return after + late

    async def pause_until(self, when: float) -> bool:
        """Sleep until *when* on the monotonic clock; False as soon as it is time to stop."""
        wait = when - time.monotonic()
        if wait <= 0:
            return not self.stopping.is_set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self.stopping.wait()
        return not self.stopping.is_set()


async def _report(control: Control) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        _write({"requests": control.tally.requests, "failed": control.tally.failed})


def _write(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def _main(work: Callable[[dict[str, Any], Control], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    task = json.loads(await reader.readline())
    control = Control(task.pop("epoch"))
    seconds = task.pop("seconds")

    async def watch() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await reader.read()
        control.stopping.set()

    helpers = [asyncio.create_task(watch()), asyncio.create_task(_report(control))]
    await work(task, control)
    for helper in helpers:
        helper.cancel()
    _write({"tally": control.tally.to_json()})


def run(work: Callable[[dict[str, Any], Control], Awaitable[None]]) -> None:
    """Be a client process that does *work* (the task without ``epoch`` and ``seconds``)."""
    # Ctrl-C goes to the whole foreground group; the parent says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_file_limit()
    # Pauses of the collector look like slow servers.
    gc.freeze()
    asyncio.run(_main(work))
