"""How a server is released: by Sockway, by the kernel's SO_REUSEPORT alone, by socket takeover.

All start the same server programs with the same number of workers; all wait until
the new ones say that they are up before the old ones are told to go. What differs
is who decides, in between, which of them a packet reaches. One accepting thread is
another program, and restarted: its socket is the only one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sockway.errors import ReleaseError
from sockway.lab.cputime import enter
from sockway.lab.patience import patient
from sockway.lab.programs import PYTHON, Program
from sockway.lab.servers import accepting

# As the installed command `sockway`, wherever that is.
SOCKWAY = (sys.executable, "-c", "from sockway.cli import main; main()")
READY_SECONDS = 30.0
END_SECONDS = 20.0


@dataclass(frozen=True)
class Plan:
    """What is released and how."""

    program: Program
    workers: int = 2
    linger: float = 0.0  # seconds an old worker goes on after new flows have left it
    wait: bool = True  # for the old generation to be gone, in `release`
    directory: Path = Path()
    env: dict[str, str] | None = None
    cgroup: Path | None = None  # that its processes are in, for their CPU time


class Releaser(ABC):
    """A running service that can be released."""

    name: str

    def __init__(self, plan: Plan) -> None:
        """Nothing is started yet."""
        self.plan = plan

    @abstractmethod
    async def start(self) -> None:
        """Start the first generation; returns when it serves. Raises `ReleaseError`."""

    @abstractmethod
    async def release(self) -> None:
        """Replace it by another; returns when the old one is gone. Raises `ReleaseError`."""

    @abstractmethod
    async def stop(self) -> None:
        """End what runs."""

    async def decisions(self) -> dict[str, int]:
        """What the router decided so far, by the names of its counters; {} without a router."""
        return {}

    @property
    def others(self) -> list[int]:
        """Live processes of its that are no servers."""
        return []


class Worker:
    """A process of the baseline, with what it printed."""

    def __init__(self, process: asyncio.subprocess.Process, up: str) -> None:
        """*up* is a regular expression for the line by which it says that it serves."""
        self.process = process
        self.up = asyncio.Event()
        self.said: list[str] = []
        self._pattern = re.compile(up)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 (a pipe was asked for)
        async for line in self.process.stdout:
            words = line.decode(errors="replace").rstrip()
            self.said = [*self.said[-20:], words]
            if self._pattern.search(words):
                self.up.set()
        self.up.set()

    async def ready(self) -> None:
        """Wait until it serves; raises `ReleaseError`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patient(READY_SECONDS)):
                await self.up.wait()
        if not self.up.is_set() or self.process.returncode is not None:
            raise ReleaseError("worker did not get ready: " + "\n".join(self.said))

    async def says(self, words: str) -> None:
        """Wait until it has printed a line; raises `ReleaseError` if it does not."""
        end = time.monotonic() + patient(READY_SECONDS)
        while words not in self.said:
            if self.process.returncode is not None or time.monotonic() > end:
                raise ReleaseError(f"worker did not say {words!r}: " + "\n".join(self.said))
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        """SIGTERM, and SIGKILL to its group if that takes too long."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(patient(END_SECONDS)):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()
        await self._reading


class ReusePort(Releaser):
    """Blue/green on SO_REUSEPORT: the new workers bind the same port, then the old ones go."""

    name = "reuseport"

    def __init__(self, plan: Plan) -> None:
        """Nothing is started yet."""
        super().__init__(plan)
        self.generation = 0
        self.workers: list[Worker] = []

    async def start(self) -> None:
        """Start the first workers."""
        self.workers = await self._spawn()

    async def release(self) -> None:
        """Start new workers; when they serve, end the old ones."""
        old, self.workers = self.workers, await self._spawn()
        if self.plan.linger:
            await asyncio.sleep(self.plan.linger)
        await asyncio.gather(*(worker.end() for worker in old))

    async def stop(self) -> None:
        """End the present workers."""
        await asyncio.gather(*(worker.end() for worker in self.workers))

    async def _spawn(self) -> list[Worker]:
        self.generation += 1
        workers = [await self._spawn_one(number) for number in range(self.plan.workers)]
        await asyncio.gather(*(worker.ready() for worker in workers))
        return workers

    def _environment(self, number: int) -> dict[str, str]:
        return (self.plan.env or dict(os.environ)) | {
            "SOCKWAY_GENERATION": str(self.generation),
            "SOCKWAY_WORKER": str(number),
            "LAB_BIND": " ".join(self.plan.program.listen),
        }

    async def _spawn_one(self, number: int) -> Worker:
        program = self.plan.program
        process = await asyncio.create_subprocess_exec(
            *(PYTHON, "-m", "sockway.lab.servers.late_bind"),
            *(program.module, *program.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment(number),
            start_new_session=True,
            preexec_fn=enter(self.plan.cgroup),
        )
        return Worker(process, program.up)


class SingleAcceptor(ReusePort):
    """One accepting process with the only socket: the new one binds when the old one is gone."""

    name = "single-acceptor"

    async def start(self) -> None:
        """Start it."""
        await super().start()
        await self._bound()

    async def release(self) -> None:
        """Load a new one, end the old one; no linger, for the port has one owner."""
        old, self.workers = self.workers, await self._spawn()
        await asyncio.gather(*(worker.end() for worker in old))
        await self._bound()

    async def _bound(self) -> None:
        await asyncio.gather(*(worker.says(accepting.READY) for worker in self.workers))

    async def _spawn(self) -> list[Worker]:
        self.generation += 1
        process = await asyncio.create_subprocess_exec(
            *(PYTHON, "-m", self.plan.program.module),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment(0) | {"LAB_WORKERS": str(self.plan.workers)},
            start_new_session=True,
            preexec_fn=enter(self.plan.cgroup),
        )
        worker = Worker(process, self.plan.program.up)
        await worker.ready()
        return [worker]


class Sockway(Releaser):
    """`sockway serve`, and `sockway release` for each release."""

    name = "sockway"

    def __init__(self, plan: Plan) -> None:
        """Nothing is started yet."""
        super().__init__(plan)
        self.service = plan.program.name
        self.process: asyncio.subprocess.Process | None = None
        self.command: asyncio.subprocess.Process | None = None
        self.reports: list[dict[str, object]] = []
        self.log = plan.directory / f"{self.service}.log"

    def how(self, program: Program) -> list[str]:
        """Options that only this way of releasing has."""
        return ["--ready", program.ready]

    @property
    def others(self) -> list[int]:
        """The supervisor, and the command that waits for it."""
        both = (self.process, self.command)
        return [each.pid for each in both if each is not None and each.returncode is None]

    def _env(self) -> dict[str, str]:
        return self.plan.env or dict(os.environ)

    async def start(self) -> None:
        """Start the supervisor, and wait until it says READY=1 as systemd would have it."""
        program = self.plan.program
        command = [
            *(*SOCKWAY, "serve", "--name", self.service),
            *(word for url in program.listen for word in ("--listen", url)),
            *("--workers", str(self.plan.workers), *self.how(program)),
            *("--drain-timeout", "60", "--ready-timeout", f"{patient(READY_SECONDS):g}"),
            *(word for pair in program.env.items() for word in ("--env", "=".join(pair))),
            *program.options,
        ]
        if "--linger" not in program.options:
            command += ["--linger", f"{self.plan.linger:g}"]
        command += ["--", *program.command]
        path = str(self.plan.directory / f"{self.service}.notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(path)
            notify.setblocking(False)
            with self.log.open("wb") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    env=self._env() | {"NOTIFY_SOCKET": path},
                    start_new_session=True,
                    preexec_fn=enter(self.plan.cgroup),
                )
            await self._ready(notify)

    async def _ready(self, notify: socket.socket) -> None:
        assert self.process is not None  # noqa: S101 (start() made it)
        loop = asyncio.get_running_loop()
        ended = asyncio.create_task(self.process.wait())
        try:
            async with asyncio.timeout(patient(READY_SECONDS)):
                while True:
                    receive = asyncio.create_task(loop.sock_recv(notify, 4096))
                    await asyncio.wait({receive, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if not receive.done():
                        receive.cancel()
                        raise ReleaseError(f"sockway serve ended: {self._last_words()}")
                    if b"READY=1" in receive.result().split(b"\n"):
                        return
        except TimeoutError:
            raise ReleaseError(f"sockway serve is not ready: {self._last_words()}") from None
        finally:
            ended.cancel()

    def _last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    async def release(self) -> None:
        """One `sockway release`; its report is kept."""
        process = self.command = await asyncio.create_subprocess_exec(
            *(*SOCKWAY, "release", self.service, "--json"),
            *(["--wait"] if self.plan.wait else []),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._env(),
            preexec_fn=enter(self.plan.cgroup),
        )
        output, errors = await process.communicate()
        if process.returncode != 0:
            words = (errors or output).decode(errors="replace").strip()
            raise ReleaseError(f"sockway release: {words}\n{self._last_words()}")
        # A line for each step, and one for the whole.
        self.reports += [json.loads(line) for line in output.splitlines()]

    async def decisions(self) -> dict[str, int]:
        """The decisions for all VIPs together, by `sockway status`."""
        total: Counter[str] = Counter()
        for service in await self._status():
            for vip in service["vips"]:
                total.update(vip["decisions"])
        return dict(total)

    async def _status(self) -> list[dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(
            *(*SOCKWAY, "status", self.service, "--json"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=self._env(),
        )
        output, _ = await process.communicate()
        services: list[dict[str, Any]] = []
        if process.returncode == 0:
            services = json.loads(output)["services"]
        return services

    async def stop(self) -> None:
        """SIGTERM to the supervisor: a graceful stop."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            async with asyncio.timeout(patient(END_SECONDS)):
                await self.process.wait()
        except TimeoutError:
            os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()


class Takeover(Sockway):
    """Socket takeover: `sockway serve --takeover`, and `sockway release`."""

    name = "takeover"

    def how(self, program: Program) -> list[str]:  # noqa: ARG002
        """It has a sign of its own that a server is ready."""
        return ["--takeover"]

    async def decisions(self) -> dict[str, int]:
        """How many packets were forwarded."""
        total: Counter[str] = Counter()
        for service in await self._status():
            total.update(service["forwarding"])
        return dict(total)


SYSTEMS: dict[str, type[Releaser]] = {
    "sockway": Sockway,
    "reuseport": ReusePort,
    "takeover": Takeover,
    "single-acceptor": SingleAcceptor,
}
