"""The asyncio face of the library."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sockway import Vip, aio
from sockway.kernel import Netns

pytestmark = pytest.mark.root


@pytest.mark.usefixtures("bpffs_root")
def test_a_release_on_asyncio(inside: Netns) -> None:
    """Open, publish, drain and roll back; the loop goes on while a drain waits."""
    del inside
    vip = Vip.parse("tcp://127.0.0.1:5000")

    async def run() -> None:
        async with await aio.open_service("web", [vip]) as service:
            async with await service.generation(workers=2) as first:
                await first.publish()
            async with await service.generation(workers=2) as second:
                await second.publish()
            async with await service.generation() as third:
                assert third.sync.state == "preparing"
            assert [g.sync.number for g in service.generations] == [2, 1]
            with socket.create_connection(("127.0.0.1", 5000)):
                ticks = 0

                async def tick() -> None:
                    nonlocal ticks
                    while True:
                        ticks += 1
                        await asyncio.sleep(0.01)

                ticking = asyncio.create_task(tick())
                looks = [look async for look in second.draining(0.6)]
                ticking.cancel()
            assert ticks > 10
            assert looks[-1].expired
            assert looks[-1].accept_queue == 1
            assert (await first.drain(5.0)).done
            back = await service.rollback()
            assert back.sync.number == 1
            assert (await service.counters()).total("new_flow") == 1
            for generation in (first, second):
                generation.sync.release_all()
            await service.remove()

    asyncio.run(run())
