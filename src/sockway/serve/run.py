"""One generation as the supervisor runs it: its processes, from their start to their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from sockway.errors import NotFoundError, ReleaseError, SockwayError
from sockway.serve import ready
from sockway.serve.notify import NotifySocket
from sockway.serve.process import ProcessId, WorkerProcess
from sockway.serve.runtime import RuntimeDirectory
from sockway.serve.spec import ServeSpec
from sockway.sockets.drain import DrainProgress, DrainWatch
from sockway.sockets.generation import Generation

Event = dict[str, Any]
Observer = Callable[[Event], None]

_FIRST_BACKOFF: Final = 0.1
_LONGEST_BACKOFF: Final = 5.0
_STEADY: Final = 10.0
"""Seconds after which a worker's earlier deaths are forgiven."""
_LOOK: Final = 0.05
_SLOW_LOOK: Final = 0.5
_ALIVE: Final = 1.0
"""Seconds that a worker lives until `auto` calls it ready, where nothing can be asked."""


class GenerationRun:
    """A generation with its workers."""

    def __init__(
        self, generation: Generation, runtime: RuntimeDirectory, spec: ServeSpec, observe: Observer
    ) -> None:
        """Refer to a generation; nothing is started."""
        self.generation = generation
        self.number = generation.number
        self.workers: dict[int, WorkerProcess] = {}
        self.failures: dict[int, int] = {}
        self.stage = "preparing"
        self.task: asyncio.Task[None] | None = None
        self._runtime = runtime
        self._spec = spec
        self._observe = observe
        self._stopping = False
        self._ready: dict[int, asyncio.Event] = {}
        self._notify: NotifySocket | None = None
        self._watchers: set[asyncio.Task[None]] = set()

    # Start

    def start(self) -> None:
        """Start all workers with their sockets, and give the sockets away to them."""
        self._runtime.set_draining(self.number, draining=False)
        self._notify = NotifySocket(self._runtime.notify(self.number), self._on_ready)
        for worker in range(self.generation.workers):
            self._ready[worker] = asyncio.Event()
            self._start_worker(worker, self.generation.sockets(worker))
        self._tell("spawned", pids=[w.pid for w in self.workers.values()])

    def adopt(self, processes: dict[int, ProcessId]) -> None:
        """Take over the processes of a supervisor that died; those that ended are passed over."""
        for worker, process in processes.items():
            with contextlib.suppress(NotFoundError):
                self.workers[worker] = WorkerProcess(worker, process)
        self.stage = "live"

    async def wait_ready(self) -> None:
        """Return when every worker is ready.

        Raises:
            ReleaseError: one ended, or was not ready in time.

        """
        waits = [asyncio.ensure_future(self._worker_ready(w)) for w in self.workers]
        ends = {asyncio.ensure_future(w.exited.wait()): w for w in self.workers.values()}
        try:
            async with asyncio.timeout(self._spec.ready_timeout):
                while not all(wait.done() for wait in waits):
                    done, _ = await asyncio.wait(
                        [*(w for w in waits if not w.done()), *ends],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for ended in done & ends.keys():
                        worker = ends[ended]
                        raise ReleaseError(
                            f"worker {worker.worker} of generation {self.number} "
                            f"{worker.status} before it was ready",
                            hint="its own output says why",
                        )
                for wait in waits:
                    wait.result()
        except TimeoutError:
            late = [w for w, wait in zip(self.workers, waits, strict=True) if not wait.done()]
            names = ", ".join(map(str, late))
            raise ReleaseError(
                f"worker {names} of generation {self.number} was not ready after "
                f"{self._spec.ready_timeout:g} s (ready={self._spec.ready})",
                hint="give it more time (--ready-timeout), or another sign (--ready)",
            ) from None
        finally:
            for task in (*waits, *ends):
                task.cancel()
            await asyncio.gather(*waits, *ends, return_exceptions=True)
        self._tell("ready")

    def keep_alive(self) -> None:
        """From now on, restart workers that die."""
        self.stage = "live"
        for worker in self.workers.values():
            self._watch(worker)

    # End

    async def settle(self) -> DrainProgress:
        """Wait until all that was sent to it before the publish has been read, for a while."""
        watch = DrainWatch(self.generation)
        calm = 0
        while True:
            progress = await asyncio.to_thread(watch.look)
            # Twice: between accept and the first read a request is in neither count.
            calm = calm + 1 if progress.settled else 0
            if calm > 1 or progress.elapsed >= self._spec.settle_timeout or not self.workers:
                self._tell("settled", accept_queue=progress.accept_queue, unread=progress.unread)
                return progress
            await asyncio.sleep(_LOOK)

    async def linger(self, seconds: float) -> None:
        """Wait until connections and flows have ended by themselves, for `seconds` at most."""
        watch = DrainWatch(self.generation)
        while self.workers:
            progress = await asyncio.to_thread(watch.look)
            self._tell(
                "draining", connections=progress.connections, flows=progress.flows,
                packets=progress.packets,
            )  # fmt: skip
            if progress.done or progress.elapsed >= seconds:
                return
            await asyncio.sleep(min(_SLOW_LOOK, max(_LOOK, seconds - progress.elapsed)))

    def set_draining(self, *, draining: bool) -> None:
        """Tell the workers' drain middleware."""
        self._runtime.set_draining(self.number, draining=draining)

    async def stop(self, *, at_once: bool = False) -> None:
        """Tell the workers to stop, end them at the deadline, and take the generation out."""
        self._stopping = True
        self.stage = "stopping"
        for task in self._watchers:
            task.cancel()
        living = [w for w in self.workers.values() if not w.exited.is_set()]
        for worker in living:
            worker.signal(signal.SIGKILL if at_once else self._spec.stop)
        self._tell("stopping", pids=[w.pid for w in living])
        limit = time.monotonic() + (0 if at_once else self._spec.drain_timeout)
        killed = []
        for worker in living:
            if not await worker.wait(max(0.0, limit - time.monotonic())):
                worker.kill_group()
                killed.append(worker.pid)
        for worker in living:
            await worker.wait(_LONGEST_BACKOFF)
        self._close()
        self._tell("ended", killed=killed)

    def _close(self) -> None:
        if self._notify is not None:
            self._notify.close()
        for worker in self.workers.values():
            worker.close()
        with contextlib.suppress(SockwayError):
            self.generation.close(force=True)
        self._runtime.forget(self.number)

    @property
    def alive(self) -> list[WorkerProcess]:
        """Workers that run."""
        return [w for w in self.workers.values() if not w.exited.is_set()]

    # Workers

    def _start_worker(self, worker: int, sockets: dict[Any, Any]) -> None:
        expand = self._spec.expand
        environment = {
            **os.environ,
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": ":".join(vip.name or "unknown" for vip in sockets),
            "NOTIFY_SOCKET": str(self._runtime.notify(self.number)),
            "SOCKWAY_SERVICE": self.generation.service.name,
            "SOCKWAY_GENERATION": str(self.number),
            "SOCKWAY_WORKER": str(worker),
            "SOCKWAY_DRAIN": str(self._runtime.drain(self.number)),
        }
        lengths = {vip.id_length for vip in sockets if vip.id_length}
        if lengths:
            environment["SOCKWAY_ID_KEY"] = self.generation.service.state.id_key.hex()
            environment["SOCKWAY_ID_LENGTH"] = str(max(lengths))
        for key, value in self._spec.environment.items():
            environment[key] = expand(value, worker, self.number)
        self.workers[worker] = WorkerProcess.start(
            worker,
            [expand(word, worker, self.number) for word in self._spec.command],
            [sock.fileno() for sock in sockets.values()],
            environment,
            self._spec.identity(),
        )
        # From here on the sockets are the worker's alone, and go when it does.
        self.generation.release_sockets(worker)
        self._record()

    def _record(self) -> None:
        self._runtime.write(self.number, {n: w.id for n, w in self.workers.items()})

    def _watch(self, worker: WorkerProcess) -> None:
        task = asyncio.create_task(self._restart_when_dead(worker))
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _restart_when_dead(self, worker: WorkerProcess) -> None:
        began = time.monotonic()
        await worker.exited.wait()
        if self._stopping:
            return
        number = worker.worker
        if time.monotonic() - began > _STEADY:
            self.failures[number] = 0
        count = self.failures.get(number, 0)
        self.failures[number] = count + 1
        pause = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2**count)
        self._tell("died", worker=number, pid=worker.pid, status=worker.status, restart_in=pause)
        await asyncio.sleep(pause)
        while not self._stopping:
            try:
                self._start_worker(number, self.generation.replace_worker(number))
            except SockwayError as error:
                self._tell("restart_failed", worker=number, error=str(error))
                await asyncio.sleep(_LONGEST_BACKOFF)
                continue
            self._tell("restarted", worker=number, pid=self.workers[number].pid)
            self._watch(self.workers[number])
            return

    # Readiness

    def _on_ready(self, pid: int) -> None:
        for number, worker in self.workers.items():
            if worker.owns(pid) and number in self._ready:
                self._ready[number].set()

    async def _worker_ready(self, worker: int) -> None:
        said = asyncio.ensure_future(self._ready[worker].wait())
        if self._spec.ready == "notify":
            await said
            return
        asked = asyncio.ensure_future(self._ask(worker))
        try:
            done, _ = await asyncio.wait([said, asked], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (said, asked):
                task.cancel()

    async def _ask(self, worker: int) -> None:
        way = self._spec.ready
        if way.startswith("http:"):
            await self._one_at_a_time(ready.answers(self.generation, worker, way[5:]))
        elif way.startswith("alive:"):
            await asyncio.sleep(float(way[6:]))
        elif ready.first_tcp(self.generation) is not None:
            await self._one_at_a_time(ready.accepts(self.generation, worker))
        else:
            await asyncio.sleep(_ALIVE)

    async def _one_at_a_time(self, probe: Any) -> None:
        # The router knows one probe at a time.
        if not hasattr(self, "_probing"):
            self._probing = asyncio.Lock()
        async with self._probing:
            await probe

    def _tell(self, step: str, **facts: Any) -> None:
        self._observe({"step": step, "generation": self.number, **facts})


