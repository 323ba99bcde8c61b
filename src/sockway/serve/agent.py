"""The balancer's agent: applies its configuration, and keeps the ways to the backends true.

The data plane needs no process. The agent is there for what changes around it: a next hop that
moves, a configuration that is read again, backends that fail, server IDs that the registry gives.
It may end, crash or be replaced at any time; forwarding goes on as it was left, and the next agent
adopts it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from sockway.balancer import Balancer
from sockway.balancer.health.monitor import HealthMonitor, Remedy
from sockway.balancer.modes import Choice
from sockway.balancer.plan import Change
from sockway.errors import BusyError, SockwayError, StateError
from sockway.fleet import bring, learn, read_placed, report
from sockway.serve.notify import Notifier
from sockway.serve.signals import Signals

REFRESH: Final = 1.0
"""Seconds from one look at the neighbours to the next."""


class Agent:
    """Runs one balancer from a configuration file."""

    def __init__(self, path: Path, tell: Callable[[dict[str, Any]], None]) -> None:
        """Read `path`, and again at each SIGHUP; `tell` gets each step.

        Raises:
            ConfigError: the file can't be used.

        """
        self._path = path
        self._tell = tell
        self._spec = read_placed(path)
        self._hangup = asyncio.Event()
        self._failing: Mapping[str, Remedy] | None = None
        """What health checks want, until it is done."""
        self._failed = asyncio.Event()
        self._followed = self._spec
        self._trouble: str | None = None
        """What was last wrong with the registry; it is told once."""
        self._modes: Mapping[str, Choice] = {}
        """Where XDP runs, as was told last."""
        self._monitor = HealthMonitor(self._on_health, tell)

    async def run(self) -> None:
        """Apply the configuration, and stay until SIGTERM or SIGINT; forwarding stays after it.

        Raises:
            SockwayError: the configuration can't be applied at all.

        """
        notifier = Notifier.take_from_environment()
        loop = asyncio.get_running_loop()
        # Its work waits for the kernel, and netlink's library wants a thread without a loop.
        balancer = await loop.run_in_executor(None, Balancer.open, self._spec)
        try:
            with Signals(self._hangup.set) as signals:
                await self._apply(balancer)
                await self._refresh(balancer)
                self._follow(balancer)
                self._tell({"step": "ready", "interfaces": balancer.interfaces})
                notifier.send(READY=1, STATUS=f"balancer {self._spec.name} forwards")
                while not signals.stop.is_set():
                    await self._once(balancer, signals, notifier)
            notifier.send(STOPPING=1)
            self._tell({"step": "ended", "forwarding": "goes on"})
        finally:
            await self._monitor.close()
            balancer.close()

    async def _once(self, balancer: Balancer, signals: Signals, notifier: Notifier) -> None:
        await _first_of(REFRESH, signals.stop, self._hangup, self._failed)
        await self._take_out(balancer)
        if self._hangup.is_set():
            self._hangup.clear()
            notifier.reloading()
            await self._reload(balancer)
            await self._refresh(balancer)
            self._follow(balancer)
            notifier.send(READY=1)
        if not signals.stop.is_set():
            await self._follow_registry(balancer)
            await self._refresh(balancer)
            if balancer.spec is not self._followed:
                self._follow(balancer)

    async def _reload(self, balancer: Balancer) -> None:
        before = self._spec
        try:
            self._spec = read_placed(self._path)
            if self._spec.name != before.name:
                self._tell({"step": "name_kept", "error": "the name of a balancer stays as it is"})
                self._spec = self._spec.model_copy(update={"name": before.name})
            await self._apply(balancer)
        except SockwayError as error:
            self._spec = before
            self._tell({"step": "reload_failed", "error": error.message, "hint": error.hint})

    async def _apply(self, balancer: Balancer) -> None:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, self._bring, balancer)
        self._tell({"step": "applied", "changes": [str(change) for change in found]})

    def _bring(self, balancer: Balancer) -> list[Change]:
        before = balancer.spec
        found = bring(balancer, self._spec, self._path)
        with contextlib.suppress(StateError):  # what is missing is reported by the next look
            report(balancer, before)
        return found

    async def _follow_registry(self, balancer: Balancer) -> None:
        """Learn server IDs that were given or taken back, and tell the registry."""
        try:
            loop = asyncio.get_running_loop()
            revision = await loop.run_in_executor(None, learn, balancer)
        except BusyError:
            return  # the next time
        except SockwayError as error:
            if self._trouble != error.message:
                self._tell({"step": "no_new_ids", "error": error.message, "hint": error.hint})
            self._trouble = error.message
            return
        self._trouble = None
        if revision is not None:
            self._tell({"step": "learnt_ids", "revision": revision})

    async def _refresh(self, balancer: Balancer) -> None:
        try:
            changed = await asyncio.get_running_loop().run_in_executor(None, balancer.refresh)
        except BusyError:
            return  # somebody changes it just now, and asks for the ways out anyway
        except SockwayError as error:
            self._tell({"step": "refresh_failed", "error": error.message})
            return
        self._tell_modes(balancer)
        if not changed:
            return
        self._tell({"step": "refreshed", "backends": changed})
        try:
            self._monitor.ways_changed(balancer.ways, balancer.spec)
        except SockwayError as error:
            self._tell({"step": "no_health_checks", "error": error.message, "hint": error.hint})

    def _tell_modes(self, balancer: Balancer) -> None:
        """Say where XDP runs, when that has changed."""
        for name, choice in balancer.modes.items():
            if self._modes.get(name) != choice:
                mode, reason = choice.mode, choice.reason
                self._tell({"step": "mode", "interface": name, "mode": mode, "reason": reason})
        self._modes = balancer.modes

    def _follow(self, balancer: Balancer) -> None:
        """Check what the configuration in force says: by another process it may have changed."""
        self._followed = balancer.spec
        try:
            self._monitor.follow(balancer.spec, balancer.ways, balancer.failing, balancer.set_aside)
        except SockwayError as error:
            self._tell({"step": "no_health_checks", "error": error.message, "hint": error.hint})

    def _on_health(self, failing: Mapping[str, Remedy]) -> None:
        self._failing = failing
        self._failed.set()

    async def _take_out(self, balancer: Balancer) -> None:
        """Do what health checks want."""
        self._failed.clear()
        failing = self._failing
        if failing is None:
            return
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, balancer.set_failing, failing)
        except BusyError:
            return  # the next time
        if self._failing is failing:
            self._failing = None


async def _first_of(seconds: float, *events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


__all__ = ["REFRESH", "Agent"]
