"""One worker of a generation: the place that it has, and the process that fills it now."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sockway.drain.flag import VARIABLE as DRAIN_VARIABLE
from sockway.errors import SockwayError
from sockway.quic.server import VARIABLES as QUIC_LB_VARIABLES
from sockway.serve.events import LineSink, Observer
from sockway.serve.identity import read_record
from sockway.serve.notify import VARIABLE as NOTIFY_VARIABLE
from sockway.serve.output import Output, open_for_writing
from sockway.serve.placeholders import fill, socket_names
from sockway.serve.process import Launch, Process
from sockway.serve.runtime import RuntimeDirectory
from sockway.serve.spec import ServeSpec
from sockway.serve.users import User, find_user
from sockway.sockets.generation import Generation
from sockway.wire.addresses import FlowMode, Vip

_STEADY: Final = 10.0
"""Seconds after which a worker's earlier deaths are forgiven."""
_NOT_FOR_WORKERS: Final = (
    "LISTEN_PID",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
    *QUIC_LB_VARIABLES,
)


def inherited_environment() -> dict[str, str]:
    """What workers have of the supervisor's environment."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_FOR_WORKERS}


@dataclass(frozen=True)
class Scene:
    """What the workers of a generation have in common."""

    generation: Generation
    spec: ServeSpec
    runtime: RuntimeDirectory
    tell: Observer
    print_line: LineSink


class Worker:
    """A place in a generation. It has one process at a time."""

    def __init__(self, scene: Scene, index: int) -> None:
        """Refer to the place; nothing is started."""
        self.index = index
        self.process: Process | None = None
        self.deaths = 0
        """In a row; one that lived for a while starts the count anew."""
        self.restarts = 0
        self.said_ready = asyncio.Event()
        """It sent READY=1."""
        self.matched = asyncio.Event()
        """It printed the line that `ready = log:...` waits for."""
        self._scene = scene
        self._number = scene.generation.number
        kind, rest = scene.spec.ready_kind
        self._pattern = re.compile(rest) if kind == "log" else None
        self.output = Output(scene.runtime.log(self._number, index), self._on_line)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.is_alive

    @property
    def pid(self) -> int | None:
        """Of the process that runs."""
        return self.process.pid if self.process is not None and self.process.is_alive else None

    def start(self, sockets: Mapping[Vip, socket.socket]) -> None:
        """Start its process with these sockets, and let go of our own descriptors of them.

        Raises:
            KernelError: no process could be started.

        """
        scene = self._scene
        spec = scene.spec
        vips = tuple(sockets)
        user = find_user(spec.user) if spec.user else None

        def filled(text: str) -> str:
            return fill(text, vips, generation=self._number, worker=self.index)

        output = open_for_writing(self.output.path, user.uid if user else None)
        try:
            self.process = Process.start(
                Launch(
                    command=[filled(word) for word in spec.command],
                    environment=self._environment(vips, user)
                    | {name: filled(value) for name, value in spec.env.items()},
                    descriptors=[sock.fileno() for sock in sockets.values()],
                    output=output,
                    pid_file=scene.runtime.pid_file(self._number, self.index),
                    directory=spec.directory,
                    user=user,
                )
            )
        finally:
            os.close(output)
        # From here on the sockets are the worker's alone, and leave the router when it dies.
        scene.generation.release_sockets(self.index)

    def adopt(self) -> bool:
        """Watch the process that an earlier supervisor started, if it lives."""
        record = read_record(self._scene.runtime.pid_file(self._number, self.index))
        if record is not None:
            self.process = Process.adopt(*record)
        return self.is_alive

    async def keep_alive(self) -> None:
        """Start its process again whenever it dies, after a pause that grows; until cancelled."""
        spec = self._scene.spec
        while self.process is not None:
            began = time.monotonic()
            await self.process.wait()
            if time.monotonic() - began > _STEADY:
                self.deaths = 0
            self.deaths += 1
            pause = min(spec.restart_delay_most, spec.restart_delay * 2 ** (self.deaths - 1))
            self._tell("died", how=self.process.describe_end(), restart_in=pause)
            await asyncio.sleep(pause)
            await self._restart()

    async def _restart(self) -> None:
        while True:
            try:
                self.start(self._scene.generation.replace_worker(self.index))
            except SockwayError as error:
                self._tell("restart_failed", error=str(error))
                await asyncio.sleep(self._scene.spec.restart_delay_most)
            else:
                self.restarts += 1
                self._tell("restarted", pid=self.pid)
                return

    def _environment(self, vips: tuple[Vip, ...], user: User | None) -> dict[str, str]:
        scene = self._scene
        environment = inherited_environment()
        environment |= user.environment if user else {}
        environment |= {
            # LISTEN_PID is for the process itself to say.
            "LISTEN_FDS": str(len(vips)),
            "LISTEN_FDNAMES": ":".join(socket_names(vips)),
            NOTIFY_VARIABLE: str(scene.runtime.notify),
            DRAIN_VARIABLE: str(scene.runtime.flag(self._number)),
            "SOCKWAY_SERVICE": scene.generation.service.name,
            "SOCKWAY_GENERATION": str(self._number),
            "SOCKWAY_WORKER": str(self.index),
        }
        # The key is a secret: only those get it who mint IDs with it.
        with_ids = [vip for vip in vips if vip.id_length]
        if with_ids:
            first = next((vip for vip in with_ids if vip.flow == FlowMode.QUIC), with_ids[0])
            environment["SOCKWAY_ID_KEY"] = scene.generation.service.state.id_key.hex()
            environment["SOCKWAY_ID_LENGTH"] = str(first.id_length)
        if scene.spec.quic_lb is not None:
            environment |= scene.spec.quic_lb.ids().environment
        return environment

    def _on_line(self, line: str) -> None:
        if self._pattern is not None and self._pattern.search(line):
            self.matched.set()
        self._scene.print_line(self._number, self.index, line)

    def _tell(self, step: str, **facts: object) -> None:
        self._scene.tell({"step": step, "generation": self._number, "worker": self.index, **facts})
