"""The balancer's agent: applies its configuration, and keeps the ways to the backends true.

The data plane needs no process. The agent is there for what changes around it: a next hop that
moves, a configuration that is read again, backends that fail. It may end, crash or be replaced at
any time; forwarding goes on as it was left, and the next agent adopts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sockway.balancer import Balancer, read_file
from sockway.errors import BusyError, SockwayError
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
        self._spec = read_file(path)
        self._hangup = asyncio.Event()

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
                self._tell({"step": "ready", "interfaces": balancer.interfaces})
                notifier.send(READY=1, STATUS=f"balancer {self._spec.name} forwards")
                while not signals.stop.is_set():
                    await self._once(balancer, signals, notifier)
            notifier.send(STOPPING=1)
            self._tell({"step": "ended", "forwarding": "goes on"})
        finally:
            balancer.close()

    async def _once(self, balancer: Balancer, signals: Signals, notifier: Notifier) -> None:
        await _first_of(REFRESH, signals.stop, self._hangup)
        if self._hangup.is_set():
            self._hangup.clear()
            notifier.reloading()
            await self._reload(balancer)
            notifier.send(READY=1)
        if not signals.stop.is_set():
            await self._refresh(balancer)

    async def _reload(self, balancer: Balancer) -> None:
        before = self._spec
        try:
            self._spec = read_file(self._path)
            if self._spec.name != before.name:
                self._tell({"step": "name_kept", "error": "the name of a balancer stays as it is"})
                self._spec = self._spec.model_copy(update={"name": before.name})
            await self._apply(balancer)
        except SockwayError as error:
            self._spec = before
            self._tell({"step": "reload_failed", "error": error.message, "hint": error.hint})

    async def _apply(self, balancer: Balancer) -> None:
        spec = self._spec
        found = await asyncio.get_running_loop().run_in_executor(None, balancer.apply, spec)
        self._tell({"step": "applied", "changes": [str(change) for change in found]})

    async def _refresh(self, balancer: Balancer) -> None:
        try:
            changed = await asyncio.get_running_loop().run_in_executor(None, balancer.refresh)
        except BusyError:
            return  # somebody changes it just now, and asks for the ways out anyway
        except SockwayError as error:
            self._tell({"step": "refresh_failed", "error": error.message})
            return
        if changed:
            self._tell({"step": "refreshed", "backends": changed})


async def _first_of(seconds: float, *events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


__all__ = ["REFRESH", "Agent"]
