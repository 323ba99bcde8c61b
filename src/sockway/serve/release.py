"""A release and a retirement: two rows of steps, and what is left if the supervisor dies at one.

| release     | what has been done then                                | left by a crash           |
| ----------- | ------------------------------------------------------ | ------------------------- |
| `opened`    | the new generation's sockets are in the router, unseen | old published             |
| `spawned`   | its workers run and have their sockets                 | old published; workers    |
| `ready`     | every worker has said so, or has answered a probe      | old published; workers    |
| `published` | one store: new flows meet the new generation           | new published; old orphan |

| retirement  | what has been done then                                                            |
| ----------- | ---------------------------------------------------------------------------------- |
| `held`      | the old generation is as it was: there is a way back (--hold)                      |
| `draining`  | its applications know: they ask keep-alive clients to leave                        |
| `settled`   | all that it was sent before the publish has been accepted and read                 |
| `lingered`  | connections and flows have ended by themselves, or the time for that is up         |
| `stopping`  | its workers got the stop signal, which a server takes as: finish and end           |
| `stopped`   | its processes are gone                                                             |
| `ended`     | so is its place in the router                                                      |

Up to `published` whatever goes wrong ends the new generation and nothing else. After it the old
one retires beside whatever goes on, other releases included. Workers outlive their supervisor, and
the next supervisor ends what was never published and retires the rest, so no step needs undoing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from sockway.serve.events import Observer
from sockway.serve.run import GenerationRun
from sockway.sockets.drain import DrainProgress, DrainWatch

if TYPE_CHECKING:
    from sockway.sockets.generation import Generation

_LOOK: Final = 0.05
"""Seconds between two looks at what was accepted and not yet read."""
_SLOW_LOOK: Final = 0.25

OpenRun = Callable[[], Awaitable[GenerationRun]]
"""Opens a generation and says how it is run."""


class Release:
    """One release, until its generation is published."""

    STEPS: Final = ("opened", "spawned", "ready", "published")

    def __init__(self, open_run: OpenRun, tell: Observer) -> None:
        """Take how a generation is opened; nothing is done yet."""
        self.run: GenerationRun | None = None
        self._open_run = open_run
        self._tell = tell

    async def execute(self) -> GenerationRun:
        """Do all steps; what was begun is undone if one fails or this is cancelled.

        Raises:
            BusyError: another process is releasing the service.
            ReleaseError: a worker did not get ready.
            SockwayError: anything else that stood in the way.

        """
        actions: dict[str, Callable[[GenerationRun], Awaitable[None]]] = {
            "spawned": self._spawn,
            "ready": GenerationRun.wait_ready,
            "published": self._publish,
        }
        run = self.run = await self._open_run()
        try:
            self._told("opened")
            for step in self.STEPS[1:]:
                await actions[step](run)
                self._told(step)
        except BaseException:
            # In a task of its own: the undoing must not be cancelled with the rest.
            await asyncio.shield(asyncio.ensure_future(run.abandon()))
            raise
        return run

    async def _spawn(self, run: GenerationRun) -> None:
        run.start()

    async def _publish(self, run: GenerationRun) -> None:
        run.generation.publish()
        run.keep_alive()

    def _told(self, step: str) -> None:
        assert self.run is not None  # noqa: S101 - opened before any step is told
        pids = [process.pid for process in self.run.processes]
        self._tell({"step": step, "generation": self.run.number, "pids": pids})


class Retirement:
    """The end of a generation that was published, from the moment that another one is."""

    STEPS: Final = ("held", "draining", "settled", "lingered", "stopping", "stopped", "ended")

    def __init__(self, run: GenerationRun, *, hold: float) -> None:
        """Take the generation, and how long it stays as it is."""
        self.run = run
        self.hold = hold
        self._watch: DrainWatch | None = None

    @property
    def can_return(self) -> bool:
        """Whether its workers have not been told to stop, so that it can be published again."""
        return self.run.stage in {"live", "held", "draining", "settled", "lingered"}

    async def execute(self) -> None:
        """Do all steps."""
        for step in self.STEPS:
            await getattr(self, f"_{step}")()

    async def _held(self) -> None:
        if self.hold > 0:
            self.run.set_stage("held", seconds=self.hold)
            await asyncio.sleep(self.hold)

    async def _draining(self) -> None:
        self.run.let_go()
        self.run.set_draining(draining=True)
        self.run.set_stage("draining")

    async def _settled(self) -> None:
        # Between an accept and the arrival of the request there is nothing to see, so one calm
        # look is not enough.
        calm = 0
        while self.run.processes and calm < 2:  # noqa: PLR2004
            progress = await self._look()
            calm = calm + 1 if progress.settled else 0
            if progress.elapsed >= self.run.spec.settle_timeout:
                break
            await asyncio.sleep(_LOOK)
        self.run.set_stage("settled")

    async def _lingered(self) -> None:
        began = asyncio.get_running_loop().time()
        linger = self.run.spec.linger
        while self.run.processes and linger > 0:
            progress = await self._look()
            rest = linger - (asyncio.get_running_loop().time() - began)
            if rest <= 0 or self._has_left(progress):
                break
            await asyncio.sleep(min(_SLOW_LOOK, rest))
        self.run.set_stage("lingered")

    def _has_left(self, progress: DrainProgress) -> bool:
        # A UDP flow that is silent for a moment may still live, so only time tells.
        return progress.done and (not _has_udp(self.run.generation) or not progress.packets)

    async def _stopping(self) -> None:
        self.run.signal_stop()
        self.run.set_stage("stopping", pids=[p.pid for p in self.run.processes])

    async def _stopped(self) -> None:
        killed = await self.run.ended(self.run.spec.drain_timeout)
        self.run.set_stage("stopped", killed=killed)

    async def _ended(self) -> None:
        await self.run.close()
        self.run.tell("ended")

    async def _look(self) -> DrainProgress:
        if self._watch is None:
            self._watch = DrainWatch(self.run.generation)
        return await asyncio.to_thread(self._watch.look)


def _has_udp(generation: Generation) -> bool:
    return generation.is_open and generation.has_udp
