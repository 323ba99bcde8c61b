"""The experiment's figures: as a table for people, as JSON for programs."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from sockway.lab.suite import KINDS, TAKEOVER, Outcome, offered_rate
from sockway.lab.tally import Outcome as Ending
from sockway.lab.tally import Tally

NAMES = {
    "sockway": "Sockway",
    "reuseport": "SO_REUSEPORT",
    "takeover": "socket takeover",
    "single-acceptor": "one accepting thread",
}
QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


def _row(tally: Tally) -> list[str]:
    failed = f"{tally.failed:,}"
    colour = "red" if tally.failed else "green"
    latency = [f"{tally.latency.quantile(q) * 1e3:.1f}" for q in QUANTILES.values()]
    return [
        f"{tally.requests:,}",
        f"[{colour}]{failed}[/]",
        f"{tally.resets:,}",
        f"{tally.outcomes[Ending.TIMEOUT] + tally.outcomes[Ending.HANDSHAKE]:,}",
        f"{tally.outcomes[Ending.LOST]:,}",
        f"{tally.outcomes[Ending.MISROUTED]:,}",
        " ".join(f"{word:>5}" for word in latency),
    ]


def table(outcome: Outcome) -> Table:
    """The experiment as a table: a row for each kind of load and system."""
    result = Table(title="Releases under load", title_justify="left")
    result.add_column("load")
    result.add_column("released by")
    for column in ("releases", "requests", "failed", "reset", "timed out", "lost", "misrouted"):
        result.add_column(column, justify="right")
    result.add_column("p50   p99 p99.9, ms", justify="right")
    result.add_column("CPU, s", justify="right")
    for kind in KINDS:
        for load in kind.load:
            for system in outcome.systems:
                part = outcome.results.get((kind.key, system))
                if part is None or load not in part.tallies:
                    continue
                done = str(len(part.releases))
                cpu = f"{median(part.cpu_of_releases):.2f}" if part.cpu_of_releases else ""
                row = _row(part.tallies[load])
                result.add_row(kind.labels[load], NAMES[system], done, *row, cpu)
        result.add_section()
    result.caption = (
        "CPU: of a release, median; old and new servers, and what starts and stops them"
    )
    result.caption_justify = "left"
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
        if timed.due and (rate := offered_rate(first, kind.load[first])):
            reached = rate * timed.requests / timed.due
            figures[f"{kind.key}_offered_rate"] = _metric(rate, "1/s", 1)
            figures[f"{kind.key}_achieved_rate"] = _metric(reached, "1/s", timed.requests)
        figures[f"{kind.key}_failed"] = _metric(tally.failed, "requests", tally.requests)
        for name, share in QUANTILES.items() if timed.outcomes[Ending.OK] else ():
            seconds = timed.latency.quantile(share)
            figures[f"{kind.key}_{name}"] = _metric(seconds, "s", timed.outcomes[Ending.OK])
        if draining := part.cpu_while_draining():
            cpu, requests = draining
            figures[f"{kind.key}_cpu_per_request"] = _metric(cpu / requests, "s", requests)
    return figures | _summary(outcome, system)


def _summary(outcome: Outcome, system: str) -> dict[str, dict[str, Any]]:
    """All kinds together, by the names that all experiments have."""
    tally = outcome.tally(system)
    sent, datagrams = tally.requests, outcome.tally(system, "udp").requests
    figures = {
        "sent": _metric(sent, "requests and datagrams", 1),
        "failed": _metric(tally.failed, "requests", sent),
        "lost": _metric(tally.outcomes[Ending.LOST], "datagrams", datagrams),
        "misrouted": _metric(tally.outcomes[Ending.MISROUTED], "datagrams", datagrams),
    }
    if cpu := outcome.cpu(system):
        figures["cpu_of_a_release"] = _metric(median(cpu), "s", len(cpu))
    if system == TAKEOVER:
        results = [result for (_, of), result in outcome.results.items() if of == system]
        for name in ("forwarded", "dropped"):
            count = sum(result.decisions.get(name, 0) for result in results)
            figures[name] = _metric(count, "packets", sent)
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


def figures(outcome: Outcome, command: str) -> dict[str, Any]:
    """All of it for programs; *command* has it once more."""
    return {
        "experiments": {
            "release": {
                "systems": {
                    system: metrics(outcome, system)
                    for system in outcome.systems
                    if outcome.releases(system)
                },
                "command": command,
                "seconds": round(outcome.seconds, 1),
            }
        },
        "machine": machine(),
    }
