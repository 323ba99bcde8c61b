"""Services and generations for asyncio.

The same things as `sockway.Service` and `sockway.Generation`, with what may wait as coroutines:
making sockets and maps takes milliseconds (a map of maps waits for an RCU grace period), and
loading the programs of a new service tenths of a second. What is a store into memory, or a look at
it, is on the wrapped object: `generation.sync`, `service.sync`.

    async with await aio.open_service("web", [Vip.parse("tcp://[::]:8080")]) as service:
        async with await service.generation(workers=2) as generation:
            ...  # give generation.sync.sockets(n) to each worker, wait until it is ready
            await generation.publish()
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sockway.sockets.counters import Counters
from sockway.sockets.drain import INTERVAL, DrainProgress
from sockway.sockets.generation import Generation
from sockway.sockets.service import DEFAULT_FLOWS, Service
from sockway.sockets.state import FLOW_TIMEOUT, ID_TIMEOUT
from sockway.wire.addresses import Vip

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["AsyncGeneration", "AsyncService", "attach_service", "open_service"]


class AsyncGeneration:
    """A generation, for asyncio; `sync` is the generation itself."""

    def __init__(self, generation: Generation) -> None:
        """Wrap a generation."""
        self.sync = generation

    async def publish(self) -> None:
        """`Generation.publish`."""
        await asyncio.to_thread(self.sync.publish)

    async def close(self, *, force: bool = False) -> None:
        """`Generation.close`."""
        await asyncio.to_thread(self.sync.close, force=force)

    def draining(self, deadline: float, interval: float = INTERVAL) -> AsyncIterator[DrainProgress]:
        """Each look of a drain; the last one is `done` or `expired`."""
        return self.sync.adraining(deadline, interval)

    async def drain(
        self, deadline: float, on_progress: Callable[[DrainProgress], None] | None = None
    ) -> DrainProgress:
        """Wait until nothing is left, for `deadline` seconds at most; returns the last look."""
        return await self.sync.adrain(deadline, on_progress)

    async def __aenter__(self) -> Self:
        """Return itself: a generation that is not published when the block ends is closed."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it if the block did not publish it."""
        await asyncio.to_thread(self.sync.__exit__, kind, error, trace)


class AsyncService:
    """A service, for asyncio; `sync` is the service itself."""

    def __init__(self, service: Service) -> None:
        """Wrap a service."""
        self.sync = service

    async def generation(self, workers: int = 1, *, backlog: int = 4096) -> AsyncGeneration:
        """`Service.generation`."""
        made = await asyncio.to_thread(self.sync.generation, workers, backlog=backlog)
        return AsyncGeneration(made)

    async def rollback(self, number: int | None = None) -> AsyncGeneration:
        """`Service.rollback`."""
        return AsyncGeneration(await asyncio.to_thread(self.sync.rollback, number))

    async def counters(self) -> Counters:
        """`Service.counters`."""
        return await asyncio.to_thread(self.sync.counters)

    async def remove(self) -> None:
        """`Service.remove`."""
        await asyncio.to_thread(self.sync.remove)

    @property
    def published(self) -> AsyncGeneration | None:
        """The generation that gets new flows, if there is one."""
        found = self.sync.published
        return AsyncGeneration(found) if found is not None else None

    @property
    def generations(self) -> list[AsyncGeneration]:
        """Those that the router has, as `Service.generations`."""
        return [AsyncGeneration(generation) for generation in self.sync.generations]

    async def __aenter__(self) -> Self:
        """Return itself; it is closed when the block ends, and goes on."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.sync.close()


async def open_service(
    name: str,
    vips: Iterable[Vip],
    *,
    flows: int = DEFAULT_FLOWS,
    flow_timeout: float = FLOW_TIMEOUT,
    id_timeout: float = ID_TIMEOUT,
    root: Path | str | None = None,
) -> AsyncService:
    """`Service.open`."""

    def work() -> Service:
        return Service.open(
            name, vips, flows=flows, flow_timeout=flow_timeout, id_timeout=id_timeout, root=root
        )

    return AsyncService(await asyncio.to_thread(work))


async def attach_service(name: str, *, root: Path | str | None = None) -> AsyncService:
    """`Service.attach`."""
    return AsyncService(await asyncio.to_thread(Service.attach, name, root=root))
