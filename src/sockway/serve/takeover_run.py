"""A generation of workers that take over from the one before, in user space.

Each worker is a Python server behind `sockway.takeover.run`: it gets its sockets from the worker of
the same number before it, and reads for both while that one drains. No BPF, so no router decides
what is published: a generation serves from the moment that its workers do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sockway.drain.flag import CALM
from sockway.drain.flag import VARIABLE as DRAIN_VARIABLE
from sockway.errors import ConfigError
from sockway.serve.events import LineSink, Observer
from sockway.serve.identity import read_record
from sockway.serve.notify import VARIABLE as NOTIFY_VARIABLE
from sockway.serve.output import Output, open_for_writing
from sockway.serve.placeholders import fill, socket_names
from sockway.serve.process import Launch, Process
from sockway.serve.run import NotReadyError
from sockway.serve.runtime import RuntimeDirectory
from sockway.serve.spec import ServeSpec
from sockway.serve.worker import inherited_environment
from sockway.takeover.agent import DIRECTORY
from sockway.takeover.run import LISTEN, NOTICE

_GRACE: Final = 2.0
"""Seconds that a worker which was never ready gets between its stop signal and the kill."""
_SETTLE: Final = 1.0
"""Least seconds of a drain: what was accepted a moment ago has not sent its request yet."""
_LAST_WAIT: Final = 10.0
_STEADY: Final = 10.0
"""Seconds after which a worker's earlier deaths are forgiven."""


@dataclass(frozen=True)
class TakeoverScene:
    """What all generations of a supervisor have in common."""

    spec: ServeSpec
    runtime: RuntimeDirectory
    directory: Path
    """Where workers find each other."""
    notify: Path
    key: str
    """Of connection IDs, in hex."""
    tell: Observer
    print_line: LineSink


def python_command(command: list[str]) -> tuple[str, list[str]]:
    """The interpreter, and what comes after ``-m sockway.takeover.run``.

    Raises:
        ConfigError: it is no Python server.

    """
    first, *rest = command
    name = Path(first).name
    if name.startswith("python"):
        if rest[:1] == ["-m"] and len(rest) > 1:
            return first, rest
        if rest and not rest[0].startswith("-"):
            return first, rest
    elif (path := shutil.which(first)) and _is_python_script(path):
        return sys.executable, [path, *rest]
    raise ConfigError(
        f"{first} can't take over: the server has to be a Python program on asyncio or uvloop",
        hint="write `python -m MODULE ...`, `python FILE ...` or a Python command such as uvicorn; "
        "without --takeover any server is released",
    )


def _is_python_script(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:  # noqa: PTH123
        line = file.readline(200)
        return line.startswith(b"#!") and b"python" in line
    return False


class TakeoverWorker:
    """A place in a generation. It has one process at a time."""

    def __init__(self, scene: TakeoverScene, generation: int, index: int) -> None:
        """Refer to the place; nothing is started."""
        self.index = index
        self.process: Process | None = None
        self.deaths = 0
        """In a row; one that lived for a while starts the count anew."""
        self.restarts = 0
        self.serving = asyncio.Event()
        """It has said that it reads and accepts."""
        self._scene = scene
        self._generation = generation
        self.output = Output(
            scene.runtime.log(generation, index),
            lambda line: scene.print_line(generation, index, line),
        )

    def start(self) -> None:
        """Start its process.

        Raises:
            KernelError: no process could be started.

        """
        scene, spec = self._scene, self._scene.spec
        interpreter, server = python_command(spec.command)
        self.serving.clear()
        output = open_for_writing(self.output.path)
        try:
            self.process = Process.start(
                Launch(
                    command=[
                        interpreter, "-m", "sockway.takeover.run", *map(self._filled, server)
                    ],
                    environment=self._environment()
                    | {name: self._filled(value) for name, value in spec.env.items()},
                    descriptors=[],
                    output=output,
                    pid_file=scene.runtime.pid_file(self._generation, self.index),
                    directory=spec.directory,
                )
            )  # fmt: skip
        finally:
            os.close(output)

    def adopt(self) -> bool:
        """Watch the process that an earlier supervisor started, if it lives."""
        record = read_record(self._scene.runtime.pid_file(self._generation, self.index))
        if record is not None:
            self.process = Process.adopt(*record)
        return self.process is not None

    async def keep_alive(self) -> None:
        """Start its process again whenever it dies, after a pause that grows; until cancelled."""
        spec = self._scene.spec
        while self.process is not None:
            began = time.monotonic()
            await self.process.wait()
            self.deaths = 0 if time.monotonic() - began > _STEADY else self.deaths
            self.deaths += 1
            pause = min(spec.restart_delay_most, spec.restart_delay * 2 ** (self.deaths - 1))
            self._tell("died", how=self.process.describe_end(), restart_in=pause)
            await asyncio.sleep(pause)
            self.start()
            self.restarts += 1
            self._tell("restarted", pid=self.process.pid)

    def _filled(self, text: str) -> str:
        vips = self._scene.spec.vips
        return fill(text, vips, generation=self._generation, worker=self.index)

    def _environment(self) -> dict[str, str]:
        scene = self._scene
        flag = scene.directory / f"{self._generation}.{self.index}.drain"
        flag.write_bytes(CALM)
        environment = {
            **inherited_environment(),
            DIRECTORY: str(scene.directory),
            LISTEN: " ".join(scene.spec.listen),
            NOTIFY_VARIABLE: str(scene.notify),
            DRAIN_VARIABLE: str(flag),
            "LISTEN_FDNAMES": ":".join(socket_names(scene.spec.vips)),
            "SOCKWAY_SERVICE": scene.spec.name,
            "SOCKWAY_GENERATION": str(self._generation),
            "SOCKWAY_WORKER": str(self.index),
        }
        lengths = [vip.id_length for vip in scene.spec.vips if vip.id_length]
        if lengths:
            environment |= {"SOCKWAY_ID_KEY": scene.key, "SOCKWAY_ID_LENGTH": str(lengths[0])}
        return environment

    def _tell(self, step: str, **facts: object) -> None:
        who = {"generation": self._generation, "worker": self.index}
        self._scene.tell({"step": step, **who, **facts})


class TakeoverRun:
    """A generation with its workers, from their start to their end."""

    def __init__(self, scene: TakeoverScene, number: int, workers: int) -> None:
        """Refer to a generation; nothing is started."""
        self.number = number
        self.spec = scene.spec
        self.stage = "preparing"
        self.workers = [TakeoverWorker(scene, number, index) for index in range(workers)]
        self._scene = scene
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def processes(self) -> list[Process]:
        """Those that live."""
        return [w.process for w in self.workers if w.process is not None and w.process.is_alive]

    async def start(self) -> None:
        """Start all workers; returns when all serve, and the ones before no more.

        Raises:
            NotReadyError: one ended, or did not serve in time.
            KernelError: no process could be started.

        """
        self.set_stage("preparing")
        for worker in self.workers:
            worker.start()
        self.set_stage("spawned", pids=[process.pid for process in self.processes])
        waits = [asyncio.create_task(self._serves(worker)) for worker in self.workers]
        try:
            async with asyncio.timeout(self.spec.ready_timeout):
                await asyncio.gather(*waits)
        except TimeoutError:
            late = next(worker for worker in self.workers if not worker.serving.is_set())
            raise NotReadyError(
                f"worker {late.index} of generation {self.number} did not open its sockets within "
                f"{self.spec.ready_timeout:g} s",
                output=self._last_lines(late),
                hint="it has to open all of them by its event loop, as asyncio's servers do",
            ) from None
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _serves(self, worker: TakeoverWorker) -> None:
        process = worker.process
        assert process is not None  # noqa: S101 - start() made it
        ended = asyncio.create_task(process.wait())
        serving = asyncio.create_task(worker.serving.wait())
        try:
            await asyncio.wait([ended, serving], return_when=asyncio.FIRST_COMPLETED)
            if not worker.serving.is_set():
                raise NotReadyError(
                    f"worker {worker.index} of generation {self.number} "
                    f"{process.describe_end()} before it served",
                    output=self._last_lines(worker),
                )
        finally:
            for task in (ended, serving):
                task.cancel()

    def _last_lines(self, worker: TakeoverWorker) -> list[str]:
        worker.output.read()
        return list(worker.output.last)

    def keep_alive(self) -> None:
        """From now on, restart workers that die."""
        self._keepers = [asyncio.create_task(worker.keep_alive()) for worker in self.workers]

    def on_notify(self, session: int, fields: dict[str, str]) -> None:
        """Take what a process of a worker's session told."""
        for worker in self.workers:
            process = worker.process
            if process is not None and process.pid == session and fields.get(NOTICE) == "serving":
                worker.serving.set()

    def read_output(self) -> None:
        """Show what the workers have printed."""
        for worker in self.workers:
            worker.output.read()

    async def retire(self) -> None:
        """Let it drain, end it, and forget it."""
        self.let_go()
        self.set_stage("draining")
        await self._unless_ended(max(self.spec.linger, _SETTLE))
        self.signal_stop()
        self.set_stage("stopping", pids=[process.pid for process in self.processes])
        killed = await self.ended(self.spec.drain_timeout)
        self.set_stage("stopped", killed=killed)
        self.close()

    async def _unless_ended(self, seconds: float) -> None:
        waits = [asyncio.create_task(process.wait()) for process in self.processes]
        if waits:
            await asyncio.wait(waits, timeout=seconds)
            for wait in waits:
                wait.cancel()

    async def abandon(self) -> None:
        """End a generation that did not get to serve; the ones before go on."""
        self.signal_stop()
        await self.ended(_GRACE)
        self.close()

    def let_go(self) -> None:
        """From now on, workers that end stay away."""
        for keeper in self._keepers:
            keeper.cancel()
        self._keepers = []

    def signal_stop(self, *, at_once: bool = False) -> None:
        """Tell the workers to finish, or kill them."""
        self.let_go()
        for process in self.processes:
            if at_once:
                process.kill()
            else:
                process.send(self.spec.stop_number)

    async def ended(self, deadline: float) -> list[int]:
        """Wait for the workers' end; kill what is left after `deadline` s, and return that."""
        waits = [asyncio.create_task(process.wait()) for process in self.processes]
        if waits:
            await asyncio.wait(waits, timeout=deadline)
        killed = [process.pid for process in self.processes]
        for process in self.processes:
            process.kill()
        if waits:
            await asyncio.wait(waits, timeout=_LAST_WAIT)
        return killed

    def close(self) -> None:
        """Forget its files."""
        self.let_go()
        self.stage = "ended"
        for worker in self.workers:
            worker.output.close()
        for path in self._scene.directory.glob(f"{self.number & 0xFF}.*.inbox"):
            path.unlink(missing_ok=True)
        for path in self._scene.directory.glob(f"{self.number}.*.drain"):
            path.unlink(missing_ok=True)
        self._scene.runtime.forget(self.number)
        self._scene.tell({"step": "ended", "generation": self.number})

    def set_stage(self, stage: str, **facts: Any) -> None:
        """Note how far it is, for `status`, and tell."""
        self.stage = stage
        workers = [{"worker": w.index, "restarts": w.restarts} for w in self.workers]
        self._scene.runtime.write_record(
            self.number,
            {"generation": self.number, "stage": stage, "supervisor": os.getpid(),
             "command": self.spec.command, "workers": workers, **facts},
        )  # fmt: skip
        self._scene.tell({"step": stage, "generation": self.number, **facts})


__all__ = ["TakeoverRun", "TakeoverScene", "TakeoverWorker", "python_command"]
