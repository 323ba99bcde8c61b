"""`sockway status`: what is pinned, what runs, what was decided. Works without a supervisor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

from sockway.cli.output import console, out, print_json, write
from sockway.errors import StateError
from sockway.serve.asking import request
from sockway.serve.identity import read_record, start_time
from sockway.serve.runtime import RuntimeDirectory
from sockway.serve.takeover_state import TakeoverState
from sockway.sockets.generation import Generation
from sockway.sockets.service import Service
from sockway.sockets.vips import label

NOTHING: Final = "no service is pinned in this network namespace"
_PAUSE: Final = 1.0
_OF_TAKEOVER: Final = ("takeover", "forwarding", "generations")


def show(name: str | None, *, as_json: bool, watch: bool) -> None:
    """Print the status of one service or of all, once or again and again."""
    if not watch:
        _print(name, as_json=as_json)
    elif as_json:
        while True:
            _print(name, as_json=True)
            time.sleep(_PAUSE)
    else:
        from rich.live import Live  # noqa: PLC0415 - costly

        from sockway.cli.status_page import page  # noqa: PLC0415

        with Live(console=console(), auto_refresh=False) as live:
            while True:
                live.update(page(collect(name)), refresh=True)
                time.sleep(_PAUSE)


def collect(name: str | None) -> list[dict[str, Any]]:
    """The status of one service or of all, as JSON has it.

    Raises:
        NotFoundError: there is no such service.

    """
    names = [name] if name is not None else [*Service.names(), *TakeoverState.names()]
    return [_service(each) for each in names]


def _print(name: str | None, *, as_json: bool) -> None:
    found = collect(name)
    if as_json:
        print_json({"services": found})
    elif not found:
        write(NOTHING)
    else:
        from sockway.cli.status_page import page  # noqa: PLC0415 - costly

        out.print(page(found))


def _taken_over(name: str) -> dict[str, Any] | None:
    """A service that is released by takeover, as its supervisor tells; None if it is none."""
    runtime = RuntimeDirectory(name)
    if not TakeoverState(name).is_there or (pid := runtime.supervisor()) is None:
        return None
    *_, answer = request(runtime.control, {"command": "status"})
    return {"name": name, "supervisor": pid, **{k: answer[k] for k in _OF_TAKEOVER if k in answer}}


def _service(name: str) -> dict[str, Any]:
    if (taken := _taken_over(name)) is not None:
        return taken
    runtime = RuntimeDirectory(name)
    with Service.attach(name) as service:
        decisions = service.counters().decisions
        published = service.published
        return {
            "name": name,
            "published": published.number if published else None,
            "supervisor": runtime.supervisor(),
            "vips": [
                {"vip": str(placed.vip), "decisions": decisions.get(label(placed.vip), {})}
                for placed in service.vips()
            ],
            "generations": list(_generations_of(service, runtime)),
        }


def _generations_of(service: Service, runtime: RuntimeDirectory) -> Iterator[dict[str, Any]]:
    for generation in service.generations:
        # One that is closed while it is looked at is not there.
        with contextlib.suppress(StateError):
            yield _generation(generation, runtime)


def _generation(generation: Generation, runtime: RuntimeDirectory) -> dict[str, Any]:
    record = runtime.read_record(generation.number)
    progress = generation.drain_progress()
    return {
        "number": generation.number,
        "state": generation.state,
        "stage": record.get("stage"),
        "opened_at": generation.opened_at,
        "fallback": generation.fallback or None,
        "weights": [round(weight, 4) for weight in generation.weights],
        "workers": list(_workers(generation, runtime, record)),
        "drain": {
            "accept_queue": progress.accept_queue,
            "connections": progress.connections,
            "unread": progress.unread,
            "flows": progress.flows,
        },
    }


def _workers(
    generation: Generation, runtime: RuntimeDirectory, record: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    restarts = {w.get("worker"): w.get("restarts", 0) for w in record.get("workers", [])}
    for worker, count in enumerate(generation.counts()):
        known = read_record(runtime.pid_file(generation.number, worker))
        yield {
            "worker": worker,
            "pid": known[0] if known and start_time(known[0]) == known[1] else None,
            "restarts": restarts.get(worker, 0),
            "new_flows": count.new_flows,
            "owned": count.owned,
        }
