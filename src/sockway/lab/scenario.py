"""One experiment: a server, a system that releases it, load, and some releases.

`run` does it inside a sandbox that is there already. As a program this module is the
whole of it, sandbox included: ``python -m sockway.lab.scenario`` reads a scenario as
JSON on standard input and writes the result as JSON, which is how the tests run it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sockway.errors import ConfigError, SockwayError
from sockway.lab import cputime, programs
from sockway.lab.load.process import Load
from sockway.lab.patience import patient
from sockway.lab.releasers import SYSTEMS, Plan, Releaser
from sockway.lab.sandbox import Sandbox, end_with_parent, sandbox
from sockway.lab.tally import Tally

# No experiment goes on for longer than this, whatever hangs.
BOUND_SECONDS = 900.0


Sample = tuple[float, float, int]
"""When (s), CPU seconds of the servers until then, requests until then."""


@dataclass(frozen=True)
class Scenario:
    """What is done. The load's tasks are those of the modules in `sockway.lab.load`."""

    system: str  # of SYSTEMS
    program: str  # a function of `programs`
    load: dict[str, dict[str, Any]]  # "kind" or "kind:label" -> its task
    releases: int
    every: float = 2.0  # seconds from one release's begin to the next's, at least
    lead: float = 1.5  # seconds of load before the first and after the last release
    workers: int = 2
    linger: float = 0.0
    wait: bool = True  # for the old generation to be gone before the next release


@dataclass
class Result:
    """What came of it."""

    scenario: Scenario
    tallies: dict[str, Tally] = field(default_factory=dict)  # by the load's key
    releases: list[tuple[float, float]] = field(default_factory=list)  # begin and end, in s
    seconds: float = 0.0  # of load
    decisions: dict[str, int] = field(default_factory=dict)  # of the router, by name
    cpu_seconds: float | None = None  # of all processes of the system, over all of it
    cpu_of_releases: list[float] = field(default_factory=list)  # while each release lasted
    samples: list[Sample] = field(default_factory=list)
    error: str | None = None  # what broke the experiment off

    @property
    def total(self) -> Tally:
        """All loads' tallies in one."""
        total = Tally()
        for tally in self.tallies.values():
            total.merge(tally)
        return total

    def to_json(self) -> dict[str, Any]:
        """A form that `json` can write."""
        return {
            "scenario": asdict(self.scenario),
            "tallies": {key: tally.to_json() for key, tally in self.tallies.items()},
            "releases": self.releases,
            "seconds": self.seconds,
            "decisions": self.decisions,
            "cpu_seconds": self.cpu_seconds,
            "cpu_of_releases": self.cpu_of_releases,
            "samples": self.samples,
            "error": self.error,
        }

    def cpu_while_draining(self) -> tuple[float, int] | None:
        """CPU seconds of servers, and requests, while old ones drained and all was started.

        That is the last `linger` seconds of each release, or what follows a release that does not
        wait. None if there is no such time.
        """
        cpu, requests = 0.0, 0
        of = self.scenario
        for begin, end in self.releases:
            first, last = (end - of.linger, end) if of.wait else (end, begin + of.every)
            inside = [sample for sample in self.samples if first <= sample[0] <= last]
            if len(inside) > 1:
                cpu += inside[-1][1] - inside[0][1]
                requests += inside[-1][2] - inside[0][2]
        return (cpu, requests) if requests else None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        """The result that `to_json` wrote."""
        return cls(
            scenario=Scenario(**data["scenario"]),
            tallies={key: Tally.from_json(tally) for key, tally in data["tallies"].items()},
            releases=[(begin, end) for begin, end in data["releases"]],
            seconds=data["seconds"],
            decisions=data["decisions"],
            cpu_seconds=data["cpu_seconds"],
            cpu_of_releases=data["cpu_of_releases"],
            samples=[(at, cpu, requests) for at, cpu, requests in data["samples"]],
            error=data["error"],
        )


@dataclass
class Progress:
    """Where an experiment is, for whoever shows it."""

    scenario: Scenario
    releases: int
    requests: int
    failed: int


Observer = Callable[[Progress], None]


def make_program(name: str, directory: Path) -> programs.Program:
    """The program *name*, with what it needs written to *directory*; raises `ConfigError`."""
    simple = {
        "tiny": programs.tiny,
        "echo": programs.echo,
        "uvicorn": programs.uvicorn,
        "hypercorn": programs.hypercorn,
        "granian": programs.granian,
        "gunicorn": programs.gunicorn,
    }
    if name in simple:
        return simple[name]()
    if name == "nginx":
        return programs.nginx(directory)
    if name == "http3":
        # cryptography takes a tenth of a second to load
        from sockway.lab.servers.certificate import write_certificate  # noqa: PLC0415

        return programs.http3(*write_certificate(directory))
    raise ConfigError(
        f"no program is called {name!r}", hint=f"one of {[*simple, 'nginx', 'http3']}"
    )


class Experiment:
    """A scenario under way."""

    def __init__(self, scenario: Scenario, box: Sandbox, observer: Observer | None) -> None:
        """Nothing is started yet."""
        self.scenario = scenario
        self.box = box
        self.observer = observer
        self.result = Result(scenario)
        self.loads: dict[str, Load] = {}
        self.epoch = time.monotonic()
        self.cgroup: Path | None = None

    async def run(self) -> Result:
        """Do all of it; what breaks it off is told in the result, with what was counted."""
        directory = self._make_directory()
        with cputime.cgroup(directory.name) as self.cgroup:
            await self._run(directory)
        return self.result

    def _make_directory(self) -> Path:
        # Of its own: the same system may run the same program twice in one sandbox.
        prefix = f"{self.scenario.system}-{self.scenario.program}-"
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=self.box.directory))
        directory.chmod(0o755)
        return directory

    async def _run(self, directory: Path) -> None:
        plan = Plan(
            program=make_program(self.scenario.program, directory),
            workers=self.scenario.workers,
            linger=self.scenario.linger,
            wait=self.scenario.wait,
            directory=directory,
            env=self.box.environment,
            cgroup=self.cgroup,
        )
        releaser = SYSTEMS[self.scenario.system](plan)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(releaser.stop)
            stack.push_async_callback(self._kill_loads)
            try:
                async with asyncio.timeout(patient(BOUND_SECONDS)):
                    await releaser.start()
                    await self._measure(releaser)
            except SockwayError as error:
                self.result.error = str(error)
            except TimeoutError:
                self.result.error = f"not done within {patient(BOUND_SECONDS):g} s"

    async def _kill_loads(self) -> None:
        for load in self.loads.values():
            await load.kill()

    async def _measure(self, releaser: Releaser) -> None:
        for key, task in self.scenario.load.items():
            self.loads[key] = await Load.start(
                key.partition(":")[0],
                task,
                epoch=self.epoch,
                seconds=patient(BOUND_SECONDS),
                env=self.box.environment,
            )
        watcher = asyncio.create_task(self._watch(releaser))
        try:
            # The lead counts from the first answer on: clients take a while to start.
            await asyncio.gather(*(load.began() for load in self.loads.values()))
            await asyncio.sleep(self.scenario.lead)
            for _ in range(self.scenario.releases):
                begin, used = time.monotonic(), cputime.used(self.cgroup)
                await releaser.release()
                if used is not None:
                    self.result.cpu_of_releases.append((cputime.used(self.cgroup) or used) - used)
                self.result.releases.append((begin - self.epoch, time.monotonic() - self.epoch))
                await asyncio.sleep(max(0.0, begin + self.scenario.every - time.monotonic()))
            await asyncio.sleep(self.scenario.lead)
        finally:
            watcher.cancel()
            stopping = {key: asyncio.create_task(load.stop()) for key, load in self.loads.items()}
            for key, stopped in stopping.items():
                self.result.tallies[key] = await stopped
            self.result.cpu_seconds = cputime.used(self.cgroup)
            self.result.decisions = await releaser.decisions()
            self.result.seconds = time.monotonic() - self.epoch
            self._tell()

    def _tell(self) -> None:
        if self.observer is not None:
            loads = self.loads.values()
            requests = sum(load.requests for load in loads)
            failed = sum(load.failed for load in loads)
            done = len(self.result.releases)
            self.observer(Progress(self.scenario, done, requests, failed))

    async def _watch(self, releaser: Releaser) -> None:
        while True:
            self._tell()
            if (used := cputime.used(self.cgroup)) is not None:
                used -= sum(cputime.used_by(pid) for pid in releaser.others)
                requests = sum(load.requests for load in self.loads.values())
                self.result.samples.append((time.monotonic() - self.epoch, used, requests))
            await asyncio.sleep(0.2)


async def run(scenario: Scenario, box: Sandbox, observer: Observer | None = None) -> Result:
    """Run *scenario* in *box*, and tell *observer* how far it is, five times a second."""
    return await Experiment(scenario, box, observer).run()


def main() -> None:
    """Run the scenario on standard input; the result goes to standard output."""
    end_with_parent()
    scenario = Scenario(**json.load(sys.stdin))
    with sandbox() as box:
        result = asyncio.run(run(scenario, box))
    json.dump(result.to_json(), sys.stdout)


if __name__ == "__main__":
    main()
