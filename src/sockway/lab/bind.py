"""The experiment `bind`: what one more VIP costs where thousands share a port.

The kernel looks through what is bound to a port already before it lets another socket join, and
holds the port's lock meanwhile. Whether it walks all of it depends on the protocol and on
SO_REUSEPORT; a time that grows with the number of VIPs is that walk.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from sockway.errors import StateError
from sockway.kernel import Netns
from sockway.lab import bindcache
from sockway.lab.drawing import colour, decades, panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.sandbox import raise_file_limit
from sockway.lab.steering import BindEach, BindWildcard, SkLookup, Way, reach, vip

KINDS: Final = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
NAMES: Final[Mapping[str, str]] = {
    "reuseport": "a bind for each VIP, SO_REUSEPORT",
    "exclusive": "a bind for each VIP, exclusive",
    "wildcard": "one wildcard bind",
    "sk_lookup": "sk_lookup, an entry for each VIP",
}
QUICK: Final = (100, 300, 1000, 2000, 4000, 8000)
FULL: Final = (*QUICK, 16_000)
_SAMPLES: Final = 51
"""Of the last binds before a size is reached."""
_SPARE: Final = 500
"""Descriptors that are for other things."""
_LEAST: Final = 2
"""Sizes: with one, nothing is said about growth."""
_WALK: Final = 3.0
"""A time that grows by more than this from the first size to the last is a walk."""

_NOTE: Final = (
    "Times of single calls by one thread in a namespace of its own, medians of the last "
    f"{_SAMPLES} VIPs before each number. VIPs come in an order drawn by lot; afterwards 300 of "
    "them are reached by a datagram or a connection, which arrives at the socket that it is for. "
    "There is no load: the caller's own core is the limit."
)


@dataclass
class Growth:
    """What VIPs cost by one way."""

    next: dict[int, list[float]] = field(default_factory=dict)
    """By number of VIPs: seconds of those that came last."""
    total: list[float] = field(default_factory=list)
    """Seconds for all VIPs, in each round."""
    reach: list[float] = field(default_factory=list)
    """Seconds that a datagram or a connection took to a VIP, with all of them there."""

    @property
    def factor(self) -> float:
        """How much longer the last took than the first."""
        sizes = sorted(self.next)
        return median(self.next[sizes[-1]]) / median(self.next[sizes[0]])


Ways = dict[str, Callable[[socket.SocketKind], Way]]
WAYS: Final[Ways] = {
    "reuseport": lambda kind: BindEach(kind, shared=True),
    "exclusive": lambda kind: BindEach(kind, shared=False),
    "wildcard": BindWildcard,
    "sk_lookup": SkLookup,
}


def experiment(setting: Setting) -> Findings:
    """Both protocols by all ways.

    Raises:
        SockwayError: the kernel refuses a namespace, the program or files enough.

    """
    limit = raise_file_limit()
    sizes = [size for size in (QUICK if setting.quick else FULL) if size <= limit - _SPARE]
    if len(sizes) < _LEAST:
        raise StateError(
            f"{limit} files may be open, and it takes {QUICK[_LEAST - 1] + _SPARE} at least",
            hint="ulimit -Hn 20000, or LimitNOFILE= of the service",
        )
    rounds = 1 if setting.quick else 3
    grown: dict[tuple[str, str], Growth] = {}
    for protocol, kind in KINDS.items():
        for name, make in WAYS.items():
            with setting.step(f"{protocol.upper()}: {NAMES[name]}", rounds, "rounds") as step:
                growth = grown[protocol, name] = Growth()
                for number in range(rounds):
                    chance = random.Random(setting.seed + number)
                    with Netns.create() as place:
                        place.run(lambda: _grow(growth, make(kind), sizes, chance))  # noqa: B023
                    step.at(number + 1, f"{median(growth.next[sizes[-1]]) * 1e6:,.1f} µs")
    with Netns.create() as place:
        bugs = {name: place.run(lambda: bindcache.is_wrong(family)) for name, family in  # noqa: B023
                (("IPv4", socket.AF_INET), ("IPv6", socket.AF_INET6))}  # fmt: skip
    return _found(grown, bugs, setting)


def _grow(growth: Growth, way: Way, sizes: list[int], chance: random.Random) -> None:
    """Add VIPs in any order, and reach some of them in the end."""
    order = list(range(sizes[-1]))
    chance.shuffle(order)
    try:
        took: list[float] = []
        for number in order:
            took.append(way.add(vip(number)))
            if len(took) in sizes:
                growth.next.setdefault(len(took), []).extend(_telling(way, took))
        growth.total.append(sum(took))
        for number in chance.sample(order, min(len(order), 300)):
            growth.reach.append(reach(way.socket_of(vip(number)), vip(number)))
    finally:
        way.close()


def _telling(way: Way, took: list[float]) -> list[float]:
    """The last ones; for a wildcard, which VIPs cost nothing, its own bind again and again."""
    if isinstance(way, BindWildcard):
        return [way.again() for _ in range(_SAMPLES)]
    return took[-_SAMPLES:]


def _found(
    grown: Mapping[tuple[str, str], Growth], bugs: Mapping[str, bool | str], setting: Setting
) -> Findings:
    systems: dict[str, dict[str, Metric]] = {name: {} for name in WAYS}
    for (protocol, name), growth in grown.items():
        for size, samples in growth.next.items():
            systems[name][f"{protocol}_bind_{size}"] = Metric.of(samples, "s")
        systems[name][f"{protocol}_total"] = Metric.of(growth.total, "s")
        systems[name][f"{protocol}_reach"] = Metric.of(growth.reach, "s")
        systems[name][f"{protocol}_growth"] = Metric.count(growth.factor, "1")
    systems["kernel"] = {
        f"bind_cache_bug_{name.lower()}": Metric.count(int(bug), "binds that should fail")
        for name, bug in bugs.items()
        if not isinstance(bug, str)
    }
    plots = []
    for protocol in KINDS:
        part = {name: growth for (of, name), growth in grown.items() if of == protocol}
        plots.append(_draw(protocol, part, setting))
    return Findings(
        systems=systems,
        plots=plots,
        tables=[_table(grown)],
        notes=[_NOTE, bindcache.told(bugs)],
    )


def _draw(protocol: str, part: Mapping[str, Growth], setting: Setting) -> Plot:
    calls = "bind()" if protocol == "udp" else "bind() and listen()"
    plot = Plot(
        name=f"bind-{protocol}",
        title=f"{protocol.upper()}: one more VIP on the same port",
        sentence=sentence(protocol, part),
    )
    with panel(setting.output, plot) as axes:
        for name, growth in part.items():
            sizes = sorted(growth.next)
            metrics = [Metric.of(growth.next[size], "s") for size in sizes]
            shade = colour(name)
            axes.plot(
                sizes, [m.value * 1e6 for m in metrics], color=shade, marker="o", markersize=3.5,
                label=NAMES[name], linewidth=2, linestyle="--" if name == "wildcard" else "-",
            )  # fmt: skip
            if all(m.low is not None for m in metrics):
                low = [(m.low or m.value) * 1e6 for m in metrics]
                high = [(m.high or m.value) * 1e6 for m in metrics]
                axes.fill_between(sizes, low, high, color=shade, alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        decades(axes.xaxis)
        decades(axes.yaxis)
        axes.set_xlabel("VIPs that are there")
        axes.set_ylabel(f"µs for {calls}, or the entry")
        # Never so near that noise looks like growth; and room for the legend.
        bottom, top = min(1.0, axes.get_ylim()[0]), max(30.0, axes.get_ylim()[1])
        axes.set_ylim(bottom, top * (top / bottom) ** 0.55)
        axes.legend(loc="upper left")
    return plot


def sentence(protocol: str, part: Mapping[str, Growth]) -> str:
    """What the plot of a protocol shows."""
    each = part["reuseport"]
    first, last = min(each.next), max(each.next)
    before, after = (median(each.next[size]) * 1e6 for size in (first, last))
    told = (
        f"With SO_REUSEPORT, one more {protocol.upper()} VIP took {before:.1f} µs beside {first:,} "
        f"and {after:.1f} µs beside {last:,}, {each.factor:.1f} times as long: "
    )
    told += (
        "the kernel walks what is bound to the port, under its lock. "
        if each.factor > _WALK
        else "this kernel finds the address without a walk through the port's sockets. "
    )
    others = [
        f"{NAMES[name]}, {median(growth.next[last]) * 1e6:.1f} µs ({growth.factor:.1f} times)"
        for name, growth in part.items()
        if name not in {"reuseport", "wildcard"}
    ]
    wildcard = median(part["wildcard"].next[last]) * 1e6
    return f"{told}Beside {last:,}: {'; '.join(others)}. {wildcard:.1f} µs, once, for a wildcard."


def _table(grown: Mapping[tuple[str, str], Growth]) -> Table:
    last = max(next(iter(grown.values())).next)
    rows = []
    for name in WAYS:
        row = [NAMES[name]]
        for protocol in KINDS:
            growth = grown[protocol, name]
            row.append(f"{median(growth.total) * 1e3:,.2f} ms")
            row.append(f"{median(growth.reach) * 1e6:,.0f} µs")
        rows.append(row)
    columns = [f"{last:,} VIPs by"]
    for protocol, what in (("UDP", "a datagram"), ("TCP", "a connection")):
        columns += [f"{protocol}, in all", f"{what} arrives in"]
    return Table(title="All of them together", columns=columns, rows=rows)


__all__ = ["KINDS", "NAMES", "WAYS", "Growth", "experiment", "sentence"]
