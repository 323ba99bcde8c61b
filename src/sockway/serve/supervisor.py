"""The supervisor: one process that stays while the workers of a service come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from sockway.errors import BusyError, ConfigError, NotFoundError, SockwayError, StateError
from sockway.serve.control import ControlServer, Send
from sockway.serve.events import Event, LineSink, Observer
from sockway.serve.inheritance import adopt
from sockway.serve.notify import Notifier, NotifyListener, session_of
from sockway.serve.release import Release, Retirement
from sockway.serve.run import GenerationRun
from sockway.serve.runtime import RuntimeDirectory
from sockway.serve.signals import Signals
from sockway.serve.spec import ServeSpec
from sockway.sockets.service import Service

_LOCK_PATIENCE: Final = 5.0
"""Seconds to wait for the service's lock while this process has it elsewhere."""
_CHECK: Final = 0.05
"""Seconds between two looks at the workers' output, and for a broken generation."""

T = TypeVar("T")


class Supervisor:
    """Runs one service: starts its workers, releases them, retires them."""

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
        self.runs: dict[int, GenerationRun] = {}
        self._reread = reread
        self._observers: set[Observer] = {tell}
        self._print_line = print_line
        self._runtime = RuntimeDirectory(spec.name)
        self._manager = Notifier.take_from_environment()
        self._services: list[Service] = []
        self._release: Release | None = None
        self._releasing: asyncio.Task[GenerationRun] | None = None
        self._retirements: dict[int, tuple[Retirement, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._signals = Signals(self._on_hangup)

    @property
    def service(self) -> Service:
        """The service, with the VIPs of the latest spec."""
        if not self._services:
            raise StateError("the supervisor has not been started")
        return self._services[-1]

    # The main line

    async def run(self) -> int:
        """Serve until told to stop; the service is gone when it returns.

        Returns:
            0, or 1 if a second signal cut short what connections were given to end.

        Raises:
            BusyError: the service has a supervisor already.
            SockwayError: the first generation could not be published. What an earlier supervisor
                left goes on serving; of the new one nothing is left.

        """
        self._runtime.create()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._runtime.supervised())
            self._open_service(self.spec)
            stack.callback(self._close_services)
            stack.enter_context(self._signals)
            listener = NotifyListener(self._runtime.notify, self._on_notify)
            stack.callback(listener.close)
            self._adopt()
            control = ControlServer(self._runtime.control, self._answer)
            await control.start()
            try:
                watch = self._spawn(self._watch())
                status = await self._serve()
                watch.cancel()
                return status
            finally:
                await control.close()
                await self._cancel_all()

    async def _serve(self) -> int:
        orphans = list(self.runs.values())
        try:
            await self._signals.unless_stopped(self.release())
        except BaseException:
            for run in orphans:
                run.leave()
            if not self.service.generations:
                self._remove()
            raise
        if not self._signals.stop.is_set():
            self._manager.send(MAINPID=os.getpid())
            await self._signals.stop.wait()
        return await self._stop()

    async def _stop(self) -> int:
        """Have all generations finish and end, and remove the service."""
        self._manager.send(STOPPING=1, STATUS="Draining: connections are given time to end")
        self._tell({"step": "terminating"})
        await self._cancel_all()
        runs = list(self.runs.values())
        for run in runs:
            run.set_draining(draining=True)
            run.signal_stop()
            run.set_stage("stopping", pids=[p.pid for p in run.processes])
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
            run.read_output()
            await run.close()
            run.tell("ended")
        self._remove()
        return 1 if was_hurried else 0

    def _remove(self) -> None:
        with contextlib.suppress(BusyError, NotFoundError):
            self.service.remove()
            self._services.pop()
        self._runtime.remove()

    # Releases

    async def release(self) -> GenerationRun:
        """Start a new generation, publish it, and have the old one retire.

        Returns:
            The new generation.

        Raises:
            BusyError: a release is under way already.
            ReleaseError: the new generation did not get ready; the old one goes on.
            SockwayError: anything else that stood in the way; the old one goes on.

        """
        self._refuse_while_releasing()
        self._releasing = asyncio.create_task(self._do_release())
        try:
            # Whoever asked may go away; the release goes on.
            return await asyncio.shield(self._releasing)
        except asyncio.CancelledError:
            if self._signals.stop.is_set():
                self._releasing.cancel()
                await asyncio.gather(self._releasing, return_exceptions=True)
            raise

    async def _do_release(self) -> GenerationRun:
        self._manager.reloading()
        self._release = Release(self._open_run, self._tell)
        before = list(self.runs.values())
        try:
            run = await self._release.execute()
        except BaseException as error:
            what = str(error) or type(error).__name__
            number = self._release.run.number if self._release.run else None
            self._tell({"step": "failed", "generation": number, "error": what})
            if before:
                self._manager.send(READY=1, STATUS=f"A release failed: {what}"[:200])
            raise
        self.runs[run.number] = run
        self._manager.send(READY=1, STATUS=f"Generation {run.number} is published")
        for old in before:
            if old.number not in self._retirements:
                self._retire(old, old.spec.hold if not old.is_adopted else 0.0)
        return run

    async def _open_run(self) -> GenerationRun:
        if self._reread is not None:
            spec = self._reread()
            if spec.name != self.spec.name:
                raise ConfigError(
                    f"the name has changed from {self.spec.name} to {spec.name}",
                    hint="stop this supervisor and start one for the new name",
                )
            self._open_service(spec)
            self.spec = spec
        spec = self.spec
        generation = await self._when_free(
            lambda: self.service.generation(spec.workers, backlog=spec.backlog)
        )
        # A probe of a supervisor that was killed amid it would keep out all others; the lock that
        # this generation holds says that nobody's is under way.
        self.service.record.probe.port = 0
        return GenerationRun(generation, spec, self._runtime, self._tell, self._print)

    def _open_service(self, spec: ServeSpec) -> None:
        if self._services and spec.vips == self.spec.vips:
            return
        self._services.append(
            Service.open(
                spec.name,
                spec.vips,
                flows=spec.flows,
                flow_timeout=spec.flow_timeout,
                id_timeout=spec.id_timeout,
            )
        )

    def _close_services(self) -> None:
        for service in self._services:
            service.close()

    def _refuse_while_releasing(self) -> None:
        if self._releasing is not None and not self._releasing.done():
            number = self._release.run.number if self._release and self._release.run else "?"
            raise BusyError(
                f"release of generation {number} of {self.spec.name} in progress "
                f"by process {os.getpid()}",
                hint="wait for it to end",
            )

    async def _when_free(self, change: Callable[[], T]) -> T:
        """Change the service; wait while a retirement of ours holds its lock for a moment."""
        limit = asyncio.get_running_loop().time() + _LOCK_PATIENCE
        while True:
            try:
                return await asyncio.to_thread(change)
            except BusyError:
                is_ours = int(self.service.record.lock_holder) == os.getpid()
                if not is_ours or asyncio.get_running_loop().time() > limit:
                    raise
            await asyncio.sleep(_CHECK / 5)

    async def rollback(self, number: int | None = None) -> int:
        """Publish an older generation again, and retire the one that is published.

        Args:
            number: which; the one published before the present one unless given.

        Returns:
            Its number.

        Raises:
            NotFoundError: there is none whose workers have not been told to stop.
            BusyError: a release is under way.

        """
        self._refuse_while_releasing()
        published = self._published()
        order = [g.number for g in self.service.generations if g.number != published]
        ways = [n for n in order if n in self.runs and self._can_return(self.runs[n])]
        if not ways or (number is not None and number not in ways):
            which = "" if number is None else f" {number}"
            raise NotFoundError(
                f"service {self.spec.name} has no generation{which} to roll back to",
                hint=f"live ones: {', '.join(map(str, ways))}"
                if ways
                else "an old generation is kept for a while after a release with --hold",
            )
        back = self.runs[number if number is not None else ways[0]]
        await self._when_free(lambda: self.service.rollback(back.number))
        if retirement := self._retirements.pop(back.number, None):
            retirement[1].cancel()
        back.set_draining(draining=False)
        back.keep_alive()
        back.tell("rolled_back", instead_of=published)
        self._manager.send(STATUS=f"Rolled back: generation {back.number} is published")
        if published in self.runs:
            self._retire(self.runs[published], 0.0)
        return back.number

    def _can_return(self, run: GenerationRun) -> bool:
        if not run.processes:
            return False
        retirement = self._retirements.get(run.number)
        return retirement is None or retirement[0].can_return

    def drain(self, number: int) -> None:
        """Retire an older generation now, without the rest of its hold.

        Raises:
            NotFoundError: it is not there.
            StateError: it is published.

        """
        if number not in self.runs:
            numbers = ", ".join(map(str, sorted(self.runs))) or "none"
            raise NotFoundError(
                f"service {self.spec.name} has no generation {number}", hint=f"live ones: {numbers}"
            )
        if number == self._published():
            raise StateError(
                f"generation {number} of {self.spec.name} is published",
                hint="release or roll back first, then it drains by itself",
            )
        run = self.runs[number]
        if retirement := self._retirements.get(number):
            if run.stage != "held":
                return
            retirement[1].cancel()
        self._retire(run, 0.0)

    def _retire(self, run: GenerationRun, hold: float) -> None:
        retirement = Retirement(run, hold=hold)
        self._retirements[run.number] = (retirement, self._spawn(self._retired(retirement)))

    async def _retired(self, retirement: Retirement) -> None:
        await retirement.execute()
        self._retirements.pop(retirement.run.number, None)
        self.runs.pop(retirement.run.number, None)

    def _adopt(self) -> None:
        """Take over what an earlier supervisor left."""
        for run in adopt(self.service, self.spec, self._runtime, self._tell, self._print):
            self.runs[run.number] = run

    # Beside it

    async def _watch(self) -> None:
        """Show what workers print, and fall back where the published generation is broken."""
        while True:
            for run in self._all_runs():
                run.read_output()
            published = self.runs.get(self._published())
            if published is not None and published.is_broken and published.stage == "live":
                with contextlib.suppress(NotFoundError, BusyError, StateError):
                    back = await self.rollback()
                    self._tell(
                        {"step": "fell_back", "generation": back, "broken": published.number}
                    )
            await asyncio.sleep(_CHECK)

    def _all_runs(self) -> list[GenerationRun]:
        coming = self._release.run if self._release else None
        runs = list(self.runs.values())
        return [*runs, coming] if coming is not None and coming not in runs else runs

    def _on_notify(self, sender: int, fields: dict[str, str]) -> None:
        session = session_of(sender)
        if session is not None:
            for run in self._all_runs():
                run.on_notify(session, fields)

    def _on_hangup(self) -> None:
        async def release() -> None:
            try:
                await self.release()
            except BusyError as error:
                self._tell({"step": "failed", "generation": None, "error": str(error)})
            except SockwayError:
                pass  # told as a step already

        self._spawn(release())

    # Commands

    async def _answer(self, request: dict[str, Any], send: Send) -> dict[str, Any]:
        """Do what the control socket asks for; steps are sent meanwhile."""
        command = request["command"]
        self._observers.add(send)
        try:
            if command == "release":
                return await self._answer_release(wait=bool(request.get("wait")))
            if command == "rollback":
                before = self._published()
                return {
                    "generation": await self.rollback(_number(request.get("to"))),
                    "before": before,
                }
            if command == "drain":
                number = _number(request.get("generation"))
                if number is None:
                    raise ConfigError("drain needs the number of a generation")
                self.drain(number)
                if request.get("wait"):
                    await self._until_retired([number])
                return {"generation": number}
        finally:
            self._observers.discard(send)
        raise ConfigError(
            f"the supervisor knows no command {command!r}", hint="are both of the same version?"
        )

    async def _answer_release(self, *, wait: bool) -> dict[str, Any]:
        before = self._published() or None
        began = asyncio.get_running_loop().time()
        run = await self.release()
        answer = {
            "generation": run.number,
            "before": before,
            "seconds": round(asyncio.get_running_loop().time() - began, 3),
        }
        if wait:
            await self._until_retired([n for n in self._retirements if n != run.number])
        return answer

    async def _until_retired(self, numbers: list[int]) -> None:
        tasks = [self._retirements[n][1] for n in numbers if n in self._retirements]
        if tasks:
            await asyncio.wait(tasks)

    # Small things

    def _published(self) -> int:
        return int(self.service.record.published)

    def _tell(self, event: Event) -> None:
        for observer in list(self._observers):
            # Whoever listened may be gone (a closed pipe): the service is not theirs to end.
            with contextlib.suppress(OSError):
                observer(event)

    def _print(self, generation: int, worker: int, line: str) -> None:
        with contextlib.suppress(OSError):
            self._print_line(generation, worker, line)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _cancel_all(self) -> None:
        """End releases, retirements and all else that goes on beside the main line."""
        tasks: list[asyncio.Task[Any]] = list(self._tasks)
        if self._releasing is not None:
            tasks.append(self._releasing)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._retirements.clear()


def _number(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ConfigError(f"{value!r} is no generation's number")
