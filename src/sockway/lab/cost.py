"""The experiment `cost`: what each program takes of a packet's time.

It has parts, each of which measures a program and gives findings of its own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sockway.lab import balancer_cost, router_cost, stamp_cost
from sockway.lab.bare_balancer import load
from sockway.lab.drawing import colour, panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.packets import CASES
from sockway.lab.sandbox import sandbox

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES: Final[Mapping[str, str]] = {
    "history": "slot history, steady",
    "transition": "slot history, in transition",
    "table": "a connection table for all",
}
_NOTE: Final = (
    "{count:,} packets of {flows:,} flows in each of {rounds} rounds by BPF_PROG_TEST_RUN on one "
    "CPU, net of an empty program that is measured before and after each round. The program is the "
    "limit, nothing else runs in between."
)
_HOSTS_NOTE: Final = (
    "one connection at a time between two namespaces over veth, client and server on one machine, "
    "with the program and without by turns; both together are the limit."
)
_ROUTER_NOTE: Final = (
    "{batch:,} live frames at a time from the driver's hook to the sockets, {rounds} pairs of "
    "rounds, with the program and without. The kernel's own way to the socket is most of a "
    "packet's time, and the limit; frames cost next to nothing to make."
)


def experiment(setting: Setting) -> Findings:
    """All parts, one after the other.

    Raises:
        SockwayError: a program can't be loaded, or does what it should not.

    """
    whole = Findings(systems={})
    for part in PARTS:
        found = part(setting)
        for system, metrics in found.systems.items():
            whole.systems.setdefault(system, {}).update(metrics)
        whole.plots += found.plots
        whole.tables += found.tables
        whole.notes += found.notes
    return whole


@contextmanager
def _on_one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    router_cost.pin()
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def balancer(setting: Setting) -> Findings:
    """The balancer, by kind of packet and by what it remembers."""
    rounds, count, flows = (5, 50_000, 1 << 16) if setting.quick else (15, 1_000_000, 1 << 20)
    kinds = balancer_cost.KINDS
    systems: dict[str, dict[str, Metric]] = {name: {} for name in NAMES}
    done = 0
    with (
        _on_one_cpu(),
        setting.step("balancer: kinds of packets", len(kinds) * len(NAMES)) as step,
    ):
        harness = balancer_cost.Harness()
        for name in NAMES:
            setup = load(memory="MEMORY_TABLE" if name == "table" else "MEMORY_HISTORY")
            if name == "transition":
                balancer_cost.transition(setup)
            for kind in kinds:
                found = balancer_cost.samples(harness, setup, kind, flows, rounds, count)
                metric = systems[name][f"balancer_{key(kind.name)}"] = Metric.of(found, "ns")
                done += 1
                step.at(done, f"{kind.name}: {metric.value:.0f} ns")
    plot = Plot(
        name="cost-balancer",
        title="Balancer, by kind of packet",
        sentence=on_balancer(systems, flows),
    )
    groups = {
        NAMES[name]: [systems[name][f"balancer_{key(kind.name)}"] for kind in kinds]
        for name in NAMES
    }
    with panel(setting.output, plot, (5.2, 4.6)) as axes:
        _groups(axes, [kind.name for kind in kinds], groups, list(NAMES))
        axes.set_xlabel("ns a packet")
    return Findings(
        systems=systems,
        plots=[plot],
        notes=["Balancer: " + _NOTE.format(count=count, flows=flows, rounds=rounds)],
    )  # fmt: skip


def on_balancer(systems: Mapping[str, Mapping[str, Metric]], flows: int) -> str:
    """What the plot of the balancer shows."""
    tcp = {name: systems[name]["balancer_tcp"].value for name in NAMES}
    passed = systems["history"]["balancer_no_vips"].value
    factor = tcp["table"] / tcp["history"]
    return (
        f"A known TCP packet of one of {flows:,} flows takes {tcp['history']:.0f} ns with slot "
        f"history in steady state and {tcp['transition']:.0f} ns while its slot is in transition; "
        f"with a connection table for every packet {tcp['table']:.0f} ns, {factor:.1f} times as "
        f"much as in steady state. What is for no VIP passes in {passed:.0f} ns."
    )


def carried(setting: Setting) -> Findings:
    """The balancer, by how packets carry their server's ID."""
    rounds, count, flows = (5, 50_000, 1 << 16) if setting.quick else (15, 1_000_000, 1 << 20)
    kinds = balancer_cost.carrying()
    metrics: dict[str, Metric] = {}
    with _on_one_cpu(), setting.step("balancer: server IDs in packets", len(kinds)) as step:
        harness = balancer_cost.Harness()
        setup = load(quic_ids=list(balancer_cost.QUIC_IDS.values()))
        for done, kind in enumerate(kinds, 1):
            found = balancer_cost.samples(harness, setup, kind, flows, rounds, count)
            metric = metrics[f"balancer_carrying_{key(kind.name)}"] = Metric.of(found, "ns")
            step.at(done, f"{kind.name}: {metric.value:.0f} ns")
    plot = Plot(
        name="cost-stamps", title="Balancer, by what packets carry", sentence=on_carried(metrics)
    )
    with panel(setting.output, plot, (5.2, 4.2)) as axes:
        _groups(axes, [kind.name for kind in kinds], {"": list(metrics.values())}, ["stamps"])
        axes.set_xlabel("ns a packet")
    return Findings(systems={"stamps": metrics}, plots=[plot])


def on_carried(metrics: Mapping[str, Metric]) -> str:
    """What the plot of packets with IDs shows."""
    of = {name.removeprefix("balancer_carrying_"): m.value for name, m in metrics.items()}
    return (
        f"To VIPs whose packets may carry IDs: a TCP packet with a stamp takes "
        f"{of['tcp_stamped']:.0f} ns, one without {of['tcp']:.0f} ns by the ring; "
        f"a QUIC packet whose ID is in clear {of['quic_id_in_clear']:.0f} ns, "
        f"encrypted in one block of AES {of['quic_one_block_of_aes']:.0f} ns, by the four-pass "
        f"form {of['quic_three_blocks_of_aes']:.0f} ns."
    )


def stamps(setting: Setting) -> Findings:
    """Hosts that stamp, beside the same hosts without."""
    rounds, seconds = (4, 0.2) if setting.quick else (11, 1.0)
    with setting.step("stamps on hosts: with and without", 2 * rounds, "turns") as step:
        found = stamp_cost.compare(rounds, seconds, step.at)
    systems: dict[str, dict[str, Metric]] = {"plain": {}, "stamps": {}}
    for metric, unit in stamp_cost.UNITS.items():
        for name, measured in zip(("plain", "stamps"), stamp_cost.SYSTEMS, strict=True):
            values = [figures[metric] for figures in found[measured]]
            systems[name][f"hosts_{metric}"] = Metric.of(values, unit)
        ratio = Metric.of(stamp_cost.ratios(found, metric), "1")
        systems["stamps"][f"hosts_{metric}_ratio"] = ratio
    plot = Plot(name="cost-hosts", title="Hosts that stamp", sentence=on_stamps(systems))
    shown = {"bulk": "bulk transfer", "requests": "requests", "connections": "new connections"}
    with panel(setting.output, plot) as axes:
        kept = [systems["stamps"][f"hosts_{metric}_ratio"] for metric in shown]
        _groups(axes, list(shown.values()), {"": kept}, ["stamps"], "{:.3f}")
        axes.axvline(1, color="#8a8f94", linewidth=1, linestyle=":")
        axes.set_xlabel("rate with stamps / rate without")
    return Findings(systems=systems, plots=[plot], notes=[f"Stamps on hosts: {_HOSTS_NOTE}"])


def on_stamps(systems: Mapping[str, Mapping[str, Metric]]) -> str:
    """What the plot of hosts shows."""
    of = {
        metric: _with_quartiles(systems["stamps"][f"hosts_{metric}_ratio"])
        for metric in stamp_cost.UNITS
    }
    octets = [systems[name]["hosts_octets"].value for name in ("plain", "stamps")]
    return (
        f"A client's packets of one octet have {octets[1] - octets[0]:.1f} octets more on the wire "
        f"with a stamp ({octets[0]:.1f} without). With stamps a bulk transfer runs at "
        f"{of['bulk']} of the rate without, requests one after the other at {of['requests']}, "
        f"new connections at {of['connections']}; in brackets the quartiles of neighbouring turns."
    )


def _with_quartiles(metric: Metric) -> str:
    return f"{metric.value:.2f} ({metric.low:.2f} to {metric.high:.2f})"


def router(setting: Setting) -> Findings:
    """The socket router, by flow mode, beside the kernel's own hash."""
    rounds, batches = (9, 1) if setting.quick else (41, 8)
    rates: list[router_cost.Rates] = []
    with (
        _on_one_cpu(),
        sandbox() as box,
        router_cost.answers_go_nowhere(),
        setting.step("socket router: flow modes", len(CASES)) as step,
    ):
        flood = router_cost.Flood()
        for case in CASES:
            root = box.environment["SOCKWAY_BPFFS"]
            rates.append(router_cost.measure(case, flood, root, rounds, batches))
            step.at(len(rates), f"{case.name}: {rates[-1].program:.0f} ns")
    systems: dict[str, dict[str, Metric]] = {"sockway": {}, "reuseport": {}}
    for rate in rates:
        name = f"router_{key(rate.case)}"
        systems["sockway"][name] = Metric.of(rate.programs, "ns")
        systems["sockway"][f"{name}_rate"] = Metric.count(rate.router, "packets/s", rate.rounds)
        systems["reuseport"][f"{name}_rate"] = Metric.count(rate.kernel, "packets/s", rate.rounds)
        systems["sockway"][f"{name}_ratio"] = Metric(
            value=rate.ratio, unit="1", n=rate.rounds, low=rate.low, high=rate.high
        )
    plot = Plot(name="cost-router", title="Socket router, by flow mode", sentence=on_router(rates))
    with panel(setting.output, plot, (5.2, 4.6)) as axes:
        programs = [Metric.of(rate.programs, "ns") for rate in rates]
        _groups(axes, [rate.case for rate in rates], {"sk_reuseport": programs}, ["sockway"])
        axes.set_xlabel("ns a packet, run statistics included")
    rows = [
        [
            rate.case, f"{rate.router / 1e6:.3f} M/s", f"{rate.kernel / 1e6:.3f} M/s",
            f"{rate.ratio:.3f}", f"{rate.low:.3f} to {rate.high:.3f}",
        ]
        for rate in rates
    ]  # fmt: skip
    return Findings(
        systems=systems,
        plots=[plot],
        tables=[
            Table(
                title="Packets a second to the same sockets, one CPU",
                columns=["flow mode", "router", "kernel's hash", "ratio", "quartiles"],
                rows=rows,
            )
        ],
        notes=[f"Socket router: {_ROUTER_NOTE.format(batch=router_cost.BATCH, rounds=rounds)}"],
    )


def on_router(rates: Sequence[router_cost.Rates]) -> str:
    """What the plot of the router shows."""
    cheap = min(rates, key=lambda rate: rate.program)
    dear = max(rates, key=lambda rate: rate.program)
    best = max(rates, key=lambda rate: rate.ratio)
    worst = min(rates, key=lambda rate: rate.ratio)
    return (
        f"The program takes {cheap.program:.0f} ns ({cheap.case}) to {dear.program:.0f} ns "
        f"({dear.case}) a packet; the whole way to the socket runs at {best.ratio:.2f} "
        f"({best.case}) to {worst.ratio:.2f} ({worst.case}) of the rate that the kernel's own hash "
        "has in neighbouring rounds."
    )


def _groups(
    axes: Axes,
    rows: Sequence[str],
    groups: Mapping[str, Sequence[Metric]],
    systems: Sequence[str],
    words: str = "{:.0f}",
) -> None:
    """Bars that lie, a group for each row: names have room that way."""
    height = 0.8 / len(groups)
    for number, (label, metrics) in enumerate(groups.items()):
        places = [row + (number - (len(groups) - 1) / 2) * height for row in range(len(rows))]
        values = [metric.value for metric in metrics]
        spread = [
            [_above(metric.value - (metric.low or metric.value)) for metric in metrics],
            [_above((metric.high or metric.value) - metric.value) for metric in metrics],
        ]
        shade = "#8d6cab" if systems[number] == "transition" else colour(systems[number])
        axes.barh(places, values, height * 0.9, color=shade, label=label)
        axes.errorbar(values, places, xerr=spread, fmt="none", ecolor="#8a8f94", capsize=2)
        for place, metric in zip(places, metrics, strict=True):
            axes.annotate(
                words.format(metric.value), (max(metric.value, metric.high or 0), place),
                xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    if len(groups) > 1:
        # Below the axes: any place inside has bars.
        axes.figure.legend(loc="outside lower center", ncols=1)


def _above(value: float) -> float:
    return 0.0 if math.isnan(value) else max(0.0, value)


def key(name: str) -> str:
    """A kind of packet as a part of a metric's name."""
    return "_".join("".join(c for c in name.lower() if c.isalnum() or c == " ").split())


Part = Callable[[Setting], Findings]
# The router's last: it moves this process into a namespace for good.
PARTS: Final[tuple[Part, ...]] = (balancer, carried, stamps, router)

__all__ = [
    "PARTS",
    "Part",
    "balancer",
    "carried",
    "experiment",
    "key",
    "on_balancer",
    "on_carried",
    "on_router",
    "on_stamps",
    "router",
    "stamps",
]
