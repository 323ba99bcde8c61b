"""`sockway serve` as a process in a namespace of its own, and clients of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sockway.cli.status import collect
from sockway.kernel import Netns
from sockway.serve.asking import request
from sockway.serve.identity import start_time
from sockway.serve.runtime import RuntimeDirectory

LITTLE = (sys.executable, "-m", "tests.serve.little")
VIP = "tcp://127.0.0.1:8080"
PATIENCE = 20.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Answer:
    """Who answered."""

    pid: int
    generation: int
    worker: int


class Box:
    """A namespace with a bpffs and a runtime directory, and the processes started in it."""

    def __init__(self, netns: Netns, runtime: Path) -> None:
        """Use `netns`; SOCKWAY_BPFFS is in the environment already."""
        self.netns = netns
        self.runtime = runtime
        self.environment = {
            **os.environ,
            "SOCKWAY_RUNTIME": str(runtime),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self.seen: dict[int, int] = {}
        self.started: list[Supervised] = []
        self.sockets: list[socket.socket] = []
        """Of clients, to be closed at the end."""

    def serve(self, *options: str, command: tuple[str, ...] = LITTLE, **env: str) -> Supervised:
        """Start `sockway serve --json` for the service `web`."""
        arguments = ["serve", "--json", "--name", "web", *options]
        if "--config" not in options:
            arguments += ["--", *command]
        return self.start([sys.executable, "-m", "sockway", *arguments], **env)

    def start(self, command: list[str], **env: str) -> Supervised:
        """Start a supervisor by any command; it tells its steps as JSON lines."""

        def popen() -> subprocess.Popen[str]:
            return subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**self.environment, **env},
            )

        supervised = Supervised(self, self.netns.run(popen))
        self.started.append(supervised)
        return supervised

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `sockway` command to its end."""

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "sockway", *arguments],
                capture_output=True,
                text=True,
                env=self.environment,
                timeout=60,
                check=False,
            )

        return self.netns.run(run)

    def release(self, *, wait: bool = False) -> dict[str, Any]:
        """What `sockway release` does, without starting a process."""
        command = {"command": "release", "wait": wait}
        path = self.netns.run(lambda: RuntimeDirectory("web").control)
        return list(request(path, command))[-1]

    def ask(self, path: str = "/") -> Answer:
        """One request on a connection of its own."""
        pid, generation, worker = self.get(path).split()
        return Answer(int(pid), int(generation), int(worker))

    def get(self, path: str) -> str:
        """The body of one response."""
        return self.netns.run(lambda: get(path))

    def status(self) -> dict[str, Any]:
        """The service `web` as `sockway status --json` has it (without starting a process)."""
        return self.netns.run(lambda: collect("web"))[0]

    def note(self, pids: list[int]) -> None:
        """Remember processes by their start, so that the end can see whether they are gone."""
        for pid in pids:
            if (started := start_time(pid)) is not None:
                self.seen[pid] = started

    def alive(self) -> list[int]:
        """Workers that were told of and live."""
        return [pid for pid, started in self.seen.items() if start_time(pid) == started]

    def generations_with_files(self) -> set[str]:
        """What the names of the service's files tell of generations: "generation-3"."""
        return {path.name.split(".")[0] for path in self.runtime.rglob("generation-*")}

    def close(self) -> None:
        """Kill what is left."""
        for sock in self.sockets:
            sock.close()
        for supervised in self.started:
            supervised.kill()
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


class Supervised:
    """A supervisor under test."""

    def __init__(self, box: Box, process: subprocess.Popen[str]) -> None:
        """Read what it tells from now on."""
        self.box = box
        self.process = process
        self.steps: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read_steps, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_steps(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            step = json.loads(line)
            self.box.note(step.get("pids", []))
            if pid := step.get("pid"):
                self.box.note([pid])
            with self._changed:
                self.steps.append(step)
                self._changed.notify_all()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line.rstrip("\n"))

    def wait_step(self, name: str, **facts: Any) -> dict[str, Any]:
        """The first step of this name with these facts; waits for it."""

        def found() -> dict[str, Any] | None:
            return next(
                (
                    s
                    for s in self.steps
                    if s.get("step") == name and all(s.get(k) == v for k, v in facts.items())
                ),
                None,
            )

        with self._changed:
            self._changed.wait_for(lambda: found() is not None, PATIENCE)
        step = found()
        assert step is not None, f"no {name} {facts}: {self.steps} {self.errors[-20:]}"
        return step

    def published(self, generation: int) -> Supervised:
        """Wait until it has published this generation."""
        self.wait_step("published", generation=generation)
        return self

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Have it end; returns its exit status."""
        self.send(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        status = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return status

    def kill(self) -> None:
        """SIGKILL, and collect it."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def get(path: str, port: int = 8080) -> str:
    """GET on a new connection, from the thread's namespace.

    Raises:
        OSError: it could not be had, or ended early.

    """
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator or b" 200 " not in head.split(b"\r\n")[0]:
        raise ConnectionError(f"no response: {data[:80]!r}")
    return body.decode()


@dataclass
class Load:
    """Clients that open a connection for each request."""

    answers: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextlib.contextmanager
def load(netns: Netns, clients: int = 4) -> Iterator[Load]:
    """Have clients ask all the time while the block lasts."""
    counted = Load()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                counted.answers.append(get("/"))
            except OSError as error:
                counted.failures.append(repr(error))

    threads = [threading.Thread(target=netns.run, args=(ask,)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield counted
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def eventually(condition: Any, what: str) -> None:
    """Wait until a condition holds."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit, f"not within {PATIENCE} s: {what}"
        time.sleep(0.05)
