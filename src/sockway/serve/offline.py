"""What can be done for a service whose supervisor is gone, by whoever is there instead."""

from __future__ import annotations

import asyncio
import contextlib

from sockway.errors import NotFoundError, SockwayError, StateError
from sockway.kernel import bpffs
from sockway.serve.events import Observer
from sockway.serve.release import Retirement
from sockway.serve.run import GenerationRun
from sockway.serve.runtime import RuntimeDirectory
from sockway.serve.spec import ServeSpec
from sockway.sockets.service import Service
from sockway.sockets.state import check_name, namespace_directory


def drain_orphans(name: str, number: int, runtime: RuntimeDirectory, tell: Observer) -> None:
    """Retire a generation whose supervisor is gone, and wait until it has ended.

    Raises:
        NotFoundError: there is no such service or generation.
        StateError: it is published.
        BusyError: another process is changing the service.

    """
    asyncio.run(_drain_orphans(name, number, runtime, tell))


async def _drain_orphans(name: str, number: int, runtime: RuntimeDirectory, tell: Observer) -> None:
    with Service.attach(name) as service:
        generation = service.get(number)
        if generation.is_published:
            raise StateError(
                f"generation {number} of {name} is published",
                hint=f"`sockway serve` takes it over, `sockway remove --force {name}` removes it",
            )
        runtime.create()
        with runtime.supervised():
            record = runtime.read_record(number)
            spec = ServeSpec(
                name=name,
                command=["-"],
                listen=[str(placed.vip) for placed in service.bound_vips()],
                stop_signal=str(record.get("stop_signal", "TERM")),
            )
            run = GenerationRun(generation, spec, runtime, tell, lambda *_line: None)
            run.adopt()
            await Retirement(run, hold=0.0).execute()


def remove_state(name: str, runtime: RuntimeDirectory, *, force: bool) -> None:
    """Remove what is pinned of a service, and its runtime directory; of whatever version.

    Raises:
        NotFoundError: nothing is pinned.
        StateError: a generation of it has live sockets, and `force` is not given.
        BusyError: another process is changing it.

    """
    directory = namespace_directory() / check_name(name)
    if not directory.is_dir():
        raise NotFoundError(
            f"there is no service {name!r} in this network namespace",
            hint="`sockway status` lists those that are there",
        )
    if not force and (live := _live_generations(name)):
        raise StateError(
            f"service {name} has live generations: {', '.join(map(str, live))}",
            hint="their workers serve; `sockway serve` takes them over, --force removes routing",
        )
    with bpffs.lock(directory):
        for pin in directory.iterdir():
            pin.unlink()
        directory.rmdir()
    with contextlib.suppress(OSError):
        directory.parent.rmdir()
    if runtime.path.is_dir():
        runtime.remove()


def _live_generations(name: str) -> list[int]:
    try:
        with Service.attach(name) as service:
            return [g.number for g in service.generations if g.alive()]
    except SockwayError:
        # Of another version: what lives can't be told.
        return []
