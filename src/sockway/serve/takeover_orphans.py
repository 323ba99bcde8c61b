"""Workers of supervisors that were killed: what the next supervisor does with them.

Those that serve go on until others have taken over. Those that were still on their way to serve
have nobody who waits for them, and would take over amid a later release: they are ended before it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from sockway.serve.takeover_run import TakeoverRun, TakeoverScene
from sockway.takeover.handover import who_serves

_UNPUBLISHED: Final = ("preparing", "spawned")
_LAST_WAIT: Final = 10.0


async def adopt(scene: TakeoverScene, living: set[int | None]) -> list[TakeoverRun]:
    """The generations of supervisors other than these, without workers that never served."""
    found = []
    for number in scene.runtime.generations():
        record = scene.runtime.read_record(number)
        if record.get("supervisor") in living:
            continue
        run = TakeoverRun(scene, number, len(record.get("workers", [])))
        alive = [worker for worker in run.workers if worker.adopt()]
        if alive:
            pids = [process.pid for process in run.processes]
            scene.tell({"step": "adopted", "generation": number, "pids": pids})
            if record.get("stage") in _UNPUBLISHED:
                await _end_idle(scene, run)
        if run.processes:
            found.append(run)
        else:
            run.close()
    return found


async def _end_idle(scene: TakeoverScene, run: TakeoverRun) -> None:
    """End workers that don't serve. One that does has taken over: only another may end that."""
    ends = []
    for worker in run.workers:
        process = worker.process
        if process is None or not process.is_alive:
            continue
        if await asyncio.to_thread(who_serves, scene.directory, worker.index) != run.number:
            process.kill()
            ends.append(asyncio.create_task(process.wait()))
    if ends:
        await asyncio.wait(ends, timeout=_LAST_WAIT)


__all__ = ["adopt"]
