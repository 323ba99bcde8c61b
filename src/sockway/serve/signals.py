"""What signals ask of the supervisor: SIGHUP a release, SIGTERM and SIGINT the end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType


class Signals:
    """Signal handlers of the running loop, while the `with` block lasts."""

    def __init__(self, on_hangup: Callable[[], None]) -> None:
        """Call `on_hangup` at each SIGHUP."""
        self.stop = asyncio.Event()
        """SIGTERM or SIGINT came."""
        self.hurry = asyncio.Event()
        """It came again."""
        self._actions: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: on_hangup,
        }

    def __enter__(self) -> Self:
        """Take the signals."""
        loop = asyncio.get_running_loop()
        for number, action in self._actions.items():
            loop.add_signal_handler(number, action)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give them back."""
        loop = asyncio.get_running_loop()
        for number in self._actions:
            loop.remove_signal_handler(number)

    async def unless_stopped(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do `work`, but cancel it when a stop is asked for."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stop.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return
        task.result()

    def _on_stop(self) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()
