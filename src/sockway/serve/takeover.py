"""`sockway serve --takeover`: releases by socket takeover, the way that Sockway's router replaces.

A second supervisor of the same name takes over from the first: its workers take over from the first
one's, then the first is told, which drains its own and ends. Or one supervisor does both, on SIGHUP
or `sockway release`. Workers outlive a supervisor that is killed; the next one's workers take over
from them all the same, and it ends them.

After "Zero Downtime Release" (SIGCOMM 2020). It takes no privileges and no BPF, a server in Python,
and the same VIPs' sockets from release to release: a worker has one predecessor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final

from sockway.errors import BusyError, ConfigError, PermissionDenied, SockwayError
from sockway.serve.asking import request
from sockway.serve.control import ControlServer, Send
from sockway.serve.events import Event, LineSink, Observer
from sockway.serve.notify import Notifier, NotifyListener, session_of
from sockway.serve.signals import Signals
from sockway.serve.spec import ServeSpec
from sockway.serve.takeover_orphans import adopt
from sockway.serve.takeover_run import TakeoverRun, TakeoverScene, python_command
from sockway.serve.takeover_state import TakeoverState
from sockway.sockets.service import Service
from sockway.takeover.agent import counters

_REFUSED: Final = (
    "user", "ready", "ready_delay", "hold", "settle_timeout", "backlog", "flows", "flow_timeout",
    "id_timeout", "quic_lb",
)  # fmt: skip
_CHECK: Final = 0.05
_PATIENCE: Final = 5.0
"""Seconds until a predecessor that was told to go has let go of the name."""


def check(spec: ServeSpec) -> None:
    """See that a service can be released by takeover.

    Raises:
        ConfigError: what is in the way.

    """
    for name in _REFUSED:
        if name in spec.model_fields_set and getattr(spec, name) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} is not for --takeover",
                hint="it is about the router, or about who owns sockets; leave it out, or leave "
                "out --takeover",
            )
    python_command(spec.command)


class TakeoverSupervisor:
    """Runs one service whose releases are takeovers."""

    def __init__(
        self,
        spec: ServeSpec,
        *,
        tell: Observer = lambda _event: None,
        print_line: LineSink = lambda _generation, _worker, _line: None,
        reread: Callable[[], ServeSpec] | None = None,
    ) -> None:
        """Take what to serve; nothing is started.

        Args:
            spec: what to serve.
            tell: called with each step.
            print_line: called with each line that a worker printed.
            reread: gives the spec for the next release; the same one unless given.

        """
        self.spec = spec
        self.runs: dict[int, TakeoverRun] = {}
        self.state = TakeoverState(spec.name)
        self._runtime = self.state.runtime
        self._reread = reread
        self._observers: set[Observer] = {tell}
        self._print = print_line
        self._manager = Notifier.take_from_environment()
        self._notify = self._runtime.path / f"notify-{os.getpid()}"
        self._retirements: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._signals = Signals(self._on_hangup)
        self._succeeded = asyncio.Event()
        self._orphans: list[TakeoverRun] = []
        """Of a supervisor that was killed, while nobody else serves."""

    async def run(self) -> int:
        """Serve until told to stop, or until another supervisor has taken over.

        Returns:
            0, or 1 if a second signal cut short what connections were given to end.

        Raises:
            BusyError: another process releases the service at this moment.
            ConfigError: the service is none of takeovers, or has changed too much for one.
            SockwayError: the first generation does not serve; who served before goes on.

        """
        check(self.spec)
        self.state.create()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals)
            listener = NotifyListener(self._notify, self._on_notify)
            stack.callback(listener.close)
            watch = self._spawn(self._watch())
            name = stack.enter_context(contextlib.ExitStack())
            try:
                await self._signals.unless_stopped(self._begin(name))
                return await self._serve(name) if self.runs else 0
            finally:
                watch.cancel()
                self._leave()

    async def _begin(self, name: contextlib.ExitStack) -> None:
        """The first generation: from another supervisor, from its orphans, or from nothing."""
        with self.state.changing():
            predecessor = self._runtime.supervisor()
            if predecessor is not None:
                await asyncio.to_thread(self._refuse_others, predecessor)
            else:
                name.enter_context(self._runtime.supervised())
                self._refuse_routed()
            self._orphans = await adopt(self._scene(self.spec), {predecessor})
            run = await self._start(self.spec)
            if predecessor is not None:
                await asyncio.to_thread(self._succeed)
                await self._take_name(name)
            self._publish(run)
            self._retire_orphans()

    def _retire_orphans(self) -> None:
        for orphan in self._orphans:
            self._retire(orphan)
        self._orphans = []

    def _leave(self) -> None:
        """Leave what serves as it is; if nothing does, nothing is left."""
        for orphan in self._orphans:
            for process in orphan.processes:
                process.detach()
        others = self._runtime.supervisor() not in {None, os.getpid()}
        if not (self._orphans or others or self._succeeded.is_set() or self.runs):
            self.state.remove()

    def _refuse_routed(self) -> None:
        """The router would not know of sockets that others bind to its ports."""
        with contextlib.suppress(PermissionDenied, PermissionError):
            if self.spec.name in Service.names():
                raise ConfigError(
                    f"service {self.spec.name} is the router's: it was run without --takeover",
                    hint="`sockway status` shows what is left of it; or choose another --name",
                )

    def _refuse_others(self, predecessor: int) -> None:
        answer = self._ask({"command": "status"}, missing_ok=True)
        if not answer.get("takeover"):
            raise ConfigError(
                f"service {self.spec.name} is run without --takeover, by process {predecessor}",
                hint=f"`sockway release {self.spec.name}` releases it; or choose another --name",
            )

    def _succeed(self) -> None:
        self._ask({"command": "succeed", "by": os.getpid()}, missing_ok=True)

    def _ask(self, command: dict[str, Any], *, missing_ok: bool) -> dict[str, Any]:
        try:
            *_, answer = request(self._runtime.control, command)
        except SockwayError:
            if not missing_ok:
                raise
            return {}
        return answer

    async def _take_name(self, name: contextlib.ExitStack) -> None:
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while True:
            try:
                name.enter_context(self._runtime.supervised())
            except BusyError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_CHECK)
            else:
                return

    # Releases

    async def _start(self, spec: ServeSpec) -> TakeoverRun:
        """A new generation that serves; the one before then does no more. Undone if it fails."""
        state = self.state.read()
        there = bool(self._runtime.generations())
        if there and state["workers"] not in {0, spec.workers}:
            raise ConfigError(
                f"service {spec.name} has {state['workers']} workers, and can't be taken over by "
                f"{spec.workers}: each takes the sockets of one",
                hint="keep their number, or stop the service first",
            )
        number = max([state["generation"], *self._runtime.generations()]) + 1
        self.state.write({**state, "generation": number, "workers": spec.workers})
        run = self.runs[number] = TakeoverRun(self._scene(spec), number, spec.workers)
        try:
            await run.start()
        except BaseException as error:
            what = str(error) or type(error).__name__
            self._tell({"step": "failed", "generation": number, "error": what})
            await asyncio.shield(asyncio.ensure_future(run.abandon()))
            del self.runs[number]
            raise
        return run

    def _publish(self, run: TakeoverRun) -> None:
        run.keep_alive()
        run.set_stage("published")
        self._manager.send(READY=1, STATUS=f"Generation {run.number} serves", MAINPID=os.getpid())

    async def release(self) -> TakeoverRun:
        """Start a new generation, which takes over, and have the old one retire.

        Raises:
            BusyError: a release is under way already.
            SockwayError: the new generation does not serve; the old one goes on.

        """
        with self.state.changing():
            spec = self._reread() if self._reread is not None else self.spec
            check(spec)
            if spec.name != self.spec.name or not spec.takeover:
                raise ConfigError(
                    f"service {self.spec.name} has changed its name, or is without takeover now",
                    hint="stop this supervisor and start another",
                )
            before = [run for number, run in self.runs.items() if number not in self._retirements]
            self._orphans = await adopt(self._scene(self.spec), {os.getpid()})
            run = await self._start(spec)
            self.spec = spec
            self._publish(run)
            self._retire_orphans()
            for old in before:
                self._retire(old)
        return run

    def _retire(self, run: TakeoverRun) -> None:
        self.runs[run.number] = run

        async def retire() -> None:
            await run.retire()
            self.runs.pop(run.number, None)
            self._retirements.pop(run.number, None)

        self._retirements[run.number] = asyncio.create_task(retire())

    # The main line

    async def _serve(self, name: contextlib.ExitStack) -> int:
        control = ControlServer(self._runtime.control, self._answer)
        await control.start()
        stop = asyncio.ensure_future(self._signals.stop.wait())
        succeeded = asyncio.ensure_future(self._succeeded.wait())
        await asyncio.wait([stop, succeeded], return_when=asyncio.FIRST_COMPLETED)
        await control.close()
        stop.cancel()
        succeeded.cancel()
        if not self._succeeded.is_set():
            return await self._stop()
        # The control socket is gone: from here on the name is the other one's.
        name.close()
        self._tell({"step": "succeeded"})
        for number, run in list(self.runs.items()):
            if number not in self._retirements:
                self._retire(run)
        await self._signals.unless_stopped(self._all_retired())
        return await self._stop() if self.runs else 0

    async def _all_retired(self) -> None:
        await asyncio.gather(*list(self._retirements.values()))

    async def _stop(self) -> int:
        """Have all generations finish and end."""
        self._manager.send(STOPPING=1, STATUS="Draining: connections are given time to end")
        self._tell({"step": "terminating"})
        for task in (*self._retirements.values(), *self._tasks):
            task.cancel()
        runs = list(self.runs.values())
        for run in runs:
            run.signal_stop()
            run.set_stage("stopping", pids=[process.pid for process in run.processes])
        ends = [asyncio.create_task(run.ended(run.spec.drain_timeout)) for run in runs]
        everything = asyncio.ensure_future(asyncio.gather(*ends))
        hurry = asyncio.ensure_future(self._signals.hurry.wait())
        both: list[asyncio.Future[Any]] = [everything, hurry]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        was_hurried = not everything.done()
        if was_hurried:
            for run in runs:
                run.signal_stop(at_once=True)
        await everything
        hurry.cancel()
        for run in runs:
            run.close()
        self.runs.clear()
        return 1 if was_hurried else 0

    def _scene(self, spec: ServeSpec) -> TakeoverScene:
        return TakeoverScene(
            spec, self._runtime, self.state.directory, self._notify, self.state.read()["key"],
            self._tell, self._print_line,
        )  # fmt: skip

    async def _watch(self) -> None:
        while True:
            for run in list(self.runs.values()):
                run.read_output()
            await asyncio.sleep(_CHECK)

    def _on_notify(self, pid: int, fields: dict[str, str]) -> None:
        session = session_of(pid)
        if session is not None:
            for run in self.runs.values():
                run.on_notify(session, fields)

    def _on_hangup(self) -> None:
        async def release() -> None:
            try:
                await self.release()
            except SockwayError as error:
                self._tell({"step": "failed", "generation": None, "error": str(error)})

        self._spawn(release())

    # Commands

    async def _answer(self, asked: dict[str, Any], send: Send) -> dict[str, Any]:
        """Do what the control socket asks for; steps are sent meanwhile."""
        command = asked["command"]
        if command == "status":
            return self.status()
        if command == "succeed":
            # When the answer is out: the socket goes with the name.
            asyncio.get_running_loop().call_later(_CHECK, self._succeeded.set)
            return {}
        if command != "release":
            raise ConfigError(
                f"a service that is released by takeover knows no {command!r}",
                hint="leave out --takeover for a way back",
            )
        self._observers.add(send)
        try:
            began = asyncio.get_running_loop().time()
            before = [run.number for run in self.runs.values()]
            run = await self.release()
            seconds = round(asyncio.get_running_loop().time() - began, 3)
            if asked.get("wait"):
                await asyncio.gather(
                    *(self._retirements[n] for n in before if n in self._retirements)
                )
            return {"generation": run.number, "before": max(before), "seconds": seconds}
        finally:
            self._observers.discard(send)

    def status(self) -> dict[str, Any]:
        """What runs, and how much was forwarded."""
        return {
            "takeover": True,
            "forwarding": counters(self.state.directory),
            "generations": [
                {
                    "number": run.number,
                    "stage": run.stage,
                    "workers": [
                        {
                            "worker": worker.index,
                            "pid": worker.process.pid if worker.process else None,
                            "restarts": worker.restarts,
                        }
                        for worker in run.workers
                    ],
                }
                for run in sorted(self.runs.values(), key=lambda run: -run.number)
            ],
        }

    # Small things

    def _tell(self, event: Event) -> None:
        for observer in list(self._observers):
            # Whoever listened may be gone (a closed pipe): the service is not theirs to end.
            with contextlib.suppress(OSError):
                observer(event)

    def _print_line(self, generation: int, worker: int, line: str) -> None:
        with contextlib.suppress(OSError):
            self._print(generation, worker, line)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


__all__ = ["TakeoverSupervisor", "check"]
