"""A generation as the supervisor runs it: its workers, from their start to their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine
from typing import Any, Final

from sockway.errors import BusyError, ReleaseError, SockwayError
from sockway.serve import ready
from sockway.serve.events import LineSink, Observer
from sockway.serve.identity import start_time
from sockway.serve.process import Process
from sockway.serve.runtime import RuntimeDirectory
from sockway.serve.spec import ServeSpec
from sockway.serve.worker import Scene, Worker
from sockway.sockets.generation import Generation
from sockway.wire.addresses import Vip

_GRACE: Final = 2.0
"""Seconds that a worker which serves nobody gets between its stop signal and the kill."""
_LAST_WAIT: Final = 10.0
_RETRY: Final = 0.1


class NotReadyError(ReleaseError):
    """A worker did not get ready; `.output` has the last lines that it printed."""

    def __init__(self, message: str, *, output: list[str], hint: str | None = None) -> None:
        """Say which and why."""
        super().__init__(message, hint=hint)
        self.output = output


class GenerationRun:
    """A generation with its workers."""

    def __init__(
        self,
        generation: Generation,
        spec: ServeSpec,
        runtime: RuntimeDirectory,
        tell: Observer,
        print_line: LineSink,
    ) -> None:
        """Refer to a generation; nothing is started."""
        self.generation = generation
        self.number = generation.number
        self.spec = spec
        self.stage = "preparing"
        self.is_adopted = False
        """An earlier supervisor started it: what ran it is not known, so it is not restarted."""
        self.strays: list[Process] = []
        """Processes with its sockets that no record names."""
        self._runtime = runtime
        self._tell = tell
        scene = Scene(generation, spec, runtime, self._on_event, print_line)
        self.workers = [Worker(scene, index) for index in range(generation.workers)]
        self._keepers: list[asyncio.Task[None]] = []
        self._probing = asyncio.Lock()

    @property
    def processes(self) -> list[Process]:
        """Those that live."""
        started = [w.process for w in self.workers if w.process is not None]
        return [p for p in (*started, *self.strays) if p.is_alive]

    # From the start to being ready

    def start(self) -> None:
        """Start all workers with their sockets.

        Raises:
            SockwayError: one could not be started.

        """
        self._runtime.set_flag(self.number, draining=False)
        self.record()
        for worker in self.workers:
            worker.start(self.generation.sockets(worker.index))

    def adopt(self) -> None:
        """Take over the workers that an earlier supervisor started."""
        self.is_adopted = True
        for worker in self.workers:
            worker.adopt()
        known = {p.pid for p in self.processes}
        for pid in self.generation.processes():
            # Its records are lost. Who leads the session is the worker.
            with contextlib.suppress(OSError):
                leader = os.getsid(pid)
                started = start_time(leader)
                if leader not in known and leader != os.getsid(0) and started is not None:
                    known.add(leader)
                    if stray := Process.adopt(leader, started):
                        self.strays.append(stray)

    async def wait_ready(self) -> None:
        """Return when every worker is ready.

        Raises:
            NotReadyError: one ended, or was not ready in time.

        """
        waits = {w.index: asyncio.create_task(self._is_ready(w)) for w in self.workers}
        try:
            async with asyncio.timeout(self.spec.ready_timeout):
                await asyncio.gather(*waits.values())
        except TimeoutError:
            late = [index for index, wait in waits.items() if not _went_well(wait)]
            raise NotReadyError(
                f"worker {', '.join(map(str, late))} of generation {self.number} was not ready "
                f"after {self.spec.ready_timeout:g} s (ready = {self.spec.ready})",
                output=self.last_lines(late[0]) if late else [],
                hint="give it more time (--ready-timeout), or wait for another sign (--ready)",
            ) from None
        finally:
            for wait in waits.values():
                wait.cancel()
            await asyncio.gather(*waits.values(), return_exceptions=True)

    async def _is_ready(self, worker: Worker) -> None:
        process = worker.process
        assert process is not None  # noqa: S101 - start() made it
        ended = asyncio.create_task(process.wait())
        signs = [asyncio.create_task(sign) for sign in self._signs(worker)]
        try:
            await asyncio.wait([ended, *signs], return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise NotReadyError(
                    f"worker {worker.index} of generation {self.number} "
                    f"{process.describe_end()} before it was ready",
                    output=self.last_lines(worker.index),
                )
            for sign in signs:
                if sign.done():
                    sign.result()
        finally:
            for task in (ended, *signs):
                task.cancel()
            await asyncio.gather(ended, *signs, return_exceptions=True)

    def _signs(self, worker: Worker) -> list[Coroutine[Any, Any, Any]]:
        """What shows that the worker is ready; any one of them will do."""
        kind, rest = self.spec.ready_kind
        vip = next((v for v in self.spec.vips if v.protocol == "tcp"), None)
        delay = asyncio.sleep
        if kind == "log":
            return [worker.matched.wait()]
        if kind == "exec":
            return [delay(self.spec.ready_delay)]
        if kind == "notify":
            return [worker.said_ready.wait()]
        if vip is None:
            return [worker.said_ready.wait(), delay(self.spec.ready_delay)]
        if kind == "http":
            return [self._answers(vip, worker.index, rest)]
        said = [worker.said_ready.wait()] if kind == "auto" else []
        return [*said, self._accepts(vip, worker.index)]

    # The router knows one probe at a time.

    async def _answers(self, vip: Vip, worker: int, path: str) -> None:
        async with self._probing:
            await ready.answers(self.generation, vip, worker, path)

    async def _accepts(self, vip: Vip, worker: int) -> None:
        async with self._probing:
            await ready.accepts(self.generation, vip, worker)

    # While it serves

    def keep_alive(self) -> None:
        """From now on, restart workers that die (those that were started here)."""
        self.stage = "live"
        self.record()
        if not self.is_adopted and not self._keepers:
            self._keepers = [asyncio.create_task(w.keep_alive()) for w in self.workers]

    def let_go(self) -> None:
        """From now on, workers that end stay away."""
        for keeper in self._keepers:
            keeper.cancel()
        self._keepers = []

    @property
    def is_broken(self) -> bool:
        """Whether none of its workers keeps alive."""
        if self.is_adopted:
            return not self.processes
        return all(worker.deaths >= 2 for worker in self.workers)  # noqa: PLR2004 - again and again

    def on_notify(self, session: int, fields: dict[str, str]) -> None:
        """Take what a process of a worker's session told."""
        for worker in self.workers:
            if worker.pid == session and fields.get("READY") == "1":
                worker.said_ready.set()

    def read_output(self) -> None:
        """Show what the workers have printed."""
        for worker in self.workers:
            worker.output.read()

    def last_lines(self, worker: int) -> list[str]:
        """The last lines that a worker printed."""
        output = self.workers[worker].output
        output.read()
        return list(output.last)

    # The end

    def set_draining(self, *, draining: bool) -> None:
        """Tell the workers' drain middleware."""
        self._runtime.set_flag(self.number, draining=draining)

    def signal_stop(self, *, at_once: bool = False) -> None:
        """Tell the workers to finish, or kill them."""
        self.let_go()
        for process in self.processes:
            if at_once:
                process.kill()
            else:
                process.send(self.spec.stop_number)

    async def ended(self, deadline: float) -> list[int]:
        """Wait for the workers' end; kill what is left after `deadline` seconds, and return that.

        Returns:
            Process ids of those that were killed.

        """
        limit = time.monotonic() + deadline
        waits = [asyncio.create_task(p.wait()) for p in self.processes]
        if waits:
            await asyncio.wait(waits, timeout=max(0.0, limit - time.monotonic()))
        killed = [p.pid for p in self.processes]
        for process in self.processes:
            process.kill()
        if waits:
            await asyncio.wait(waits, timeout=_LAST_WAIT)
        return killed

    async def abandon(self) -> None:
        """End a generation that was never published: nobody is connected to it."""
        self.signal_stop()
        await self.ended(_GRACE)
        await self.close()

    async def close(self) -> None:
        """Take it out of the router, once no release holds the service, and forget its files."""
        self.let_go()
        while True:
            try:
                self.generation.close(force=True)
            except BusyError:
                await asyncio.sleep(_RETRY)
            except SockwayError:
                break
            else:
                break
        self.stage = "ended"
        for worker in self.workers:
            worker.output.close()
        self._runtime.forget(self.number)

    def leave(self) -> None:
        """Stop watching its processes; they run on."""
        self.let_go()
        for process in self.processes:
            process.detach()

    def set_stage(self, stage: str, **facts: Any) -> None:
        """Note how far it is, for `status`, and tell."""
        self.stage = stage
        self.record(**facts)
        self.tell(stage, **facts)

    def tell(self, step: str, **facts: Any) -> None:
        """Tell a step."""
        self._tell({"step": step, "generation": self.number, **facts})

    def record(self, **facts: Any) -> None:
        """Write down how it is."""
        self._runtime.write_record(
            self.number,
            {
                "generation": self.number,
                "stage": self.stage,
                "supervisor": os.getpid(),
                "command": self.spec.command,
                "stop_signal": self.spec.stop_signal,
                "workers": [{"worker": w.index, "restarts": w.restarts} for w in self.workers],
                **facts,
            },
        )

    def _on_event(self, event: dict[str, Any]) -> None:
        """A worker died or was restarted."""
        self.record()
        self._tell(event)


def _went_well(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
