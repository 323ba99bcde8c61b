"""What `sockway status` shows: a table of generations and one of decisions for each service."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sockway.cli.status import NOTHING


def page(found: list[dict[str, Any]]) -> Group:
    """Return the status of these services as tables."""
    if not found:
        return Group(Text(NOTHING))
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
