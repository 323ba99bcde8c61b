"""The experiment's figures: as a table for people, as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from sockway.lab.suite import KINDS, SYSTEMS, Outcome
from sockway.lab.tally import Outcome as Ending
from sockway.lab.tally import Tally

NAMES = {"sockway": "Sockway", "reuseport": "SO_REUSEPORT"}


def _row(tally: Tally) -> list[str]:
    failed = f"{tally.failed:,}"
    colour = "red" if tally.failed else "green"
    latency = tally.latency.quantile(0.99) * 1e3
    return [
        f"{tally.requests:,}",
        f"[{colour}]{failed}[/]",
        f"{tally.resets:,}",
        f"{tally.outcomes[Ending.TIMEOUT] + tally.outcomes[Ending.HANDSHAKE]:,}",
        f"{tally.outcomes[Ending.LOST]:,}",
        f"{tally.outcomes[Ending.MISROUTED]:,}",
        f"{latency:.1f}",
    ]


def table(outcome: Outcome) -> Table:
    """The experiment as a table: a row for each kind of load and system."""
    result = Table(title="Releases under load", title_justify="left")
    result.add_column("load")
    result.add_column("released by")
    for column in ("releases", "requests", "failed", "reset", "timed out", "lost", "misrouted"):
        result.add_column(column, justify="right")
    result.add_column("p99, ms", justify="right")
    for kind in KINDS:
        for load in kind.load:
            for system in SYSTEMS:
                part = outcome.results.get((kind.key, system))
                if part is None or load not in part.tallies:
                    continue
                done = str(len(part.releases))
                result.add_row(kind.labels[load], NAMES[system], done, *_row(part.tallies[load]))
        result.add_section()
    return result


def _metric(value: float, unit: str, count: int) -> dict[str, Any]:
    return {"value": value, "unit": unit, "n": count}


def metrics(outcome: Outcome, system: str) -> dict[str, dict[str, Any]]:
    """The figures of *system*, each with its unit and how many it is counted over."""
    web = outcome.tally(system, "http1", "http3")
    udp = outcome.tally(system, "udp")
    figures = {
        "releases": _metric(outcome.releases(system), "releases", outcome.releases(system)),
        "requests": _metric(web.requests, "requests", web.requests),
        "failed_requests": _metric(web.failed, "requests", web.requests),
        "resets": _metric(web.resets, "requests", web.requests),
        "datagrams": _metric(udp.requests, "datagrams", udp.requests),
        "lost_datagrams": _metric(udp.outcomes[Ending.LOST], "datagrams", udp.requests),
        "misrouted_datagrams": _metric(udp.outcomes[Ending.MISROUTED], "datagrams", udp.requests),
    }
    for kind in KINDS:
        tally = outcome.tally(system, kind.key)
        # Downloads last as long as they are told to: their time says nothing.
        part = outcome.results.get((kind.key, system))
        first = next(iter(kind.load))
        if part is None or first not in part.tallies or not tally.requests:
            continue
        timed = part.tallies[first]
        figures[f"{kind.key}_failed"] = _metric(tally.failed, "requests", tally.requests)
        if timed.outcomes[Ending.OK]:
            p99 = timed.latency.quantile(0.99)
            figures[f"{kind.key}_p99"] = _metric(p99, "s", timed.outcomes[Ending.OK])
    return figures


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "kernel": platform.release(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "python": platform.python_version(),
    }


def write_json(outcome: Outcome, path: Path) -> None:
    """Write the figures to *path*."""
    figures = {
        "experiments": {
            "release": {
                "systems": {
                    system: metrics(outcome, system)
                    for system in SYSTEMS
                    if outcome.releases(system)
                },
                "command": " ".join(["python -m sockway.lab.demo", *sys.argv[1:]]),
                "seconds": round(outcome.seconds, 1),
            }
        },
        "machine": machine(),
    }
    path.write_text(json.dumps(figures, indent=2) + "\n")
