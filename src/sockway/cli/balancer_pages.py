"""What the balancer's commands show: tables, rates, explanations."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sockway.balancer import Balancer, BalancerCounters, Explanation
from sockway.balancer.counters import SENT
from sockway.balancer.redirects import Failures
from sockway.cli.output import console, print_json

_PAUSE: Final = 1.0
_STYLES: Final = {"up": "green", "drained": "yellow", "failing": "red", "down": "red"}


def status_of(balancer: Balancer) -> dict[str, Any]:
    """For `status --json`."""
    spec, undelivered = balancer.spec, balancer.counters().undelivered
    return {
        "name": spec.name,
        "interfaces": balancer.interfaces,
        "modes": {
            name: {"mode": choice.mode, "reason": choice.reason}
            for name, choice in balancer.modes.items()
        },
        "undelivered": None if undelivered is None else asdict(undelivered),
        "memory": spec.memory,
        "vips": [{"vip": vip.listen, "pool": vip.pool} for vip in spec.vip],
        "pools": {
            pool: [asdict(backend) for backend in backends]
            for pool, backends in balancer.status().items()
        },
    }


def status_page(balancer: Balancer) -> RenderableType:
    """For `status`."""
    found = status_of(balancer)
    table = Table(box=None, pad_edge=False)
    for column in ("pool", "backend", "address", "state"):
        table.add_column(column)
    for column in ("weight", "of the ring"):
        table.add_column(column, justify="right")
    table.add_column("next hop")
    for pool, backends in found["pools"].items():
        for each in backends:
            table.add_row(
                pool,
                each["name"],
                each["address"],
                Text(each["state"], style=_STYLES[each["state"]]),
                str(each["weight"]),
                f"{each['share']:.1%}",
                "known" if each["next_hop"] else Text("unknown", style="red"),
            )
    where = ", ".join(found["interfaces"]) or "no interface: it gets no packets"
    head = f"balancer {found['name']} on {where}; memory {found['memory']}"
    modes = [f"  {name}: {m['mode']}; {m['reason']}" for name, m in found["modes"].items()]
    vips = [f"  {vip['vip']} -> {vip['pool']}" for vip in found["vips"]]
    lost = _undelivered(balancer.counters().undelivered)
    return Group(Text(head), *map(Text, modes), *map(Text, vips), *lost, Text(""), table)


def _undelivered(found: Failures | None) -> list[Text]:
    """Say which frames were counted as sent, and lost behind the program; nothing if none were."""
    if found is None or not found.frames:
        return []
    lines = [Text(f"lost after they were sent: {found.frames:,} frames", style="red")]
    for each in found.ways:
        reason = f" ({each.reason})" if each.reason else ""
        lines.append(Text(f"  {each.frames:,} from {each.way_in} to {each.way_out}{reason}"))
    return lines


def stats_page(
    now: BalancerCounters, before: BalancerCounters | None = None, seconds: float = 1.0
) -> RenderableType:
    """For `stats`: totals, or rates since `before`."""
    unit = "/s" if before else ""
    vips = Table(box=None, pad_edge=False)
    vips.add_column("VIP")
    for column in (f"packets{unit}", f"octets{unit}"):
        vips.add_column(column, justify="right")
    vips.add_column("what became of them")
    for key, outcomes in now.outcomes.items():
        old = before.outcomes.get(key, {}) if before else {}
        rates = {n: (v - old.get(n, 0)) / seconds for n, v in outcomes.items()}
        sent = sum(rate for name, rate in rates.items() if name in SENT)
        octets = (now.octets[key] - (before.octets.get(key, 0) if before else 0)) / seconds
        told = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items() if rate)
        vips.add_row(key, f"{sent:,.0f}", f"{octets:,.0f}", told)
    backends = Table(box=None, pad_edge=False)
    backends.add_column("backend")
    for column in (f"packets{unit}", f"octets{unit}"):
        backends.add_column(column, justify="right")
    for name, count in now.backends.items():
        was = before.backends.get(name) if before else None
        packets = (count.packets - (was.packets if was else 0)) / seconds
        octets = (count.octets - (was.octets if was else 0)) / seconds
        backends.add_row(name, f"{packets:,.0f}", f"{octets:,.0f}")
    lost = _undelivered(now.undelivered)
    return Group(vips, Text(""), backends, Text(f"\nmalformed: {now.malformed:,}"), *lost)


def watch_stats(balancer: Balancer, *, as_json: bool) -> None:
    """Rates, each second, until Ctrl-C."""
    before, then = balancer.counters(), time.monotonic()
    with Live(console=console(), auto_refresh=False) if not as_json else nullcontext() as live:
        while True:
            time.sleep(_PAUSE)
            now, at = balancer.counters(), time.monotonic()
            if live is None:
                print_json({"seconds": at - then, "before": before.as_json(), **now.as_json()})
            else:
                live.update(stats_page(now, before, at - then), refresh=True)
            before, then = now, at


def explanation_page(found: Explanation) -> RenderableType:
    """For `explain`."""
    table = Table(box=None, show_header=False, pad_edge=False)
    facts = {
        "verdict": found.verdict,
        "outcome": found.outcome,
        "why": found.why,
        "VIP": found.vip,
        "pool": found.pool,
        "slot": found.slot,
        "slot's backend": found.current,
        "before that": found.previous,
        "in transition": "yes" if found.in_transition else None,
        "connection table": found.known,
        "backend": found.backend,
    }
    for name, value in facts.items():
        if value is not None:
            table.add_row(name, str(value))
    return table
