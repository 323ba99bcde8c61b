"""`sockway status`: what is pinned, what runs, what was decided. Works without a supervisor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, Final

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sockway.cli.output import out, print_json
from sockway.errors import StateError
from sockway.serve.control import request
from sockway.serve.process import read_record, start_time
from sockway.serve.runtime import RuntimeDirectory
from sockway.serve.takeover_state import TakeoverState
from sockway.sockets.generation import Generation
from sockway.sockets.service import Service
from sockway.sockets.vips import label

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
        with Live(console=out, auto_refresh=False) as live:
            while True:
                live.update(_render(collect(name)), refresh=True)
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
    else:
        out.print(_render(found))


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


def _render(found: list[dict[str, Any]]) -> Group:
    if not found:
        return Group(Text("no service is pinned in this network namespace"))
    parts: list[Any] = []
    for service in found:
        pid = service["supervisor"]
        by = f"supervisor {pid}" if pid else "no supervisor"
        parts.append(Text.assemble((service["name"], "bold"), f"  {by}"))
        if service.get("takeover"):
            parts.append(_takeover(service))
            continue
        parts.append(_generations(service["generations"]))
        parts.append(_decisions(service["vips"]))
    return Group(*parts)


def _takeover(service: dict[str, Any]) -> Group:
    told = ", ".join(f"{count:,} {name}" for name, count in service["forwarding"].items())
    table = Table("generation", "stage", "worker pids", box=None, pad_edge=True)
    for generation in service["generations"]:
        pids = " ".join(str(worker["pid"]) for worker in generation["workers"])
        table.add_row(str(generation["number"]), generation["stage"], pids)
    return Group(table, Text(f" released by takeover; packets: {told}"))


def _generations(generations: list[dict[str, Any]]) -> Table:
    table = Table("generation", "state", "worker pids", box=None, pad_edge=True)
    for heading in ("restarts", "new flows", "owned", "waiting", "connections", "UDP flows"):
        table.add_column(heading, justify="right")
    for generation in generations:
        workers = generation["workers"]
        drain = generation["drain"]
        table.add_row(
            str(generation["number"]),
            _state(generation),
            " ".join(str(w["pid"] or "-") for w in workers),
            str(sum(w["restarts"] for w in workers)),
            str(sum(w["new_flows"] for w in workers)),
            str(sum(w["owned"] for w in workers)),
            str(drain["accept_queue"] + drain["unread"]),
            str(drain["connections"]),
            str(drain["flows"]),
        )
    return table


def _state(generation: dict[str, Any]) -> str:
    """The router's word, or for one that was published before, how far its retirement is."""
    if generation["state"] == "live" and generation["stage"] not in {None, "live"}:
        return str(generation["stage"])
    return str(generation["state"])


def _decisions(vips: list[dict[str, Any]]) -> Table:
    table = Table("VIP", "packets by decision", box=None, pad_edge=True)
    for vip in vips:
        counts = vip["decisions"].items()
        decided = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts)
        table.add_row(vip["vip"], decided or "none yet")
    return table
