"""What the balancer counted: by VIP and outcome, and by backend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sockway.balancer import layout
from sockway.balancer.ledger import Ledger
from sockway.balancer.redirects import Failures, read_failures
from sockway.balancer.state import BalancerState

SENT = (
    "by_ring",
    "by_table",
    "new_flow",
    "by_previous",
    "over_limit",
    "by_stamp",
    "icmp_error",
    "to_local",
)
"""Outcomes of packets that went to a backend."""
DROPPED = ("too_big_dropped", "fragment", "ttl_expired", "no_backend", "no_route", "no_room")
"""Outcomes of packets that went nowhere."""


@dataclass(frozen=True)
class BackendCount:
    """What went to one backend since the balancer was made."""

    packets: int
    octets: int
    """Of IP, without the tunnel's headers."""


@dataclass(frozen=True)
class BalancerCounters:
    """All counters at one time."""

    outcomes: dict[str, dict[str, int]]
    """By VIP, or address of a VIP, as text: packets by outcome, those that are not 0."""
    octets: dict[str, int]
    """By VIP: octets of IP sent to backends."""
    backends: dict[str, BackendCount]
    """By name."""
    malformed: int
    """Packets that were cut short or contradict themselves; they were passed."""
    undelivered: Failures | None = None
    """Frames that were counted as sent or answered, and that the kernel lost; None: the kernel
    can't tell."""

    @property
    def sent(self) -> int:
        """Packets sent to backends, of all VIPs."""
        return sum(n for each in self.outcomes.values() for name, n in each.items() if name in SENT)

    @property
    def dropped(self) -> int:
        """Packets dropped, of all VIPs."""
        return sum(
            n for each in self.outcomes.values() for name, n in each.items() if name in DROPPED
        )

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def read_counters(state: BalancerState, book: Ledger) -> BalancerCounters:
    """The counters, summed over all CPUs."""
    names = layout.outcomes()
    outcomes: dict[str, dict[str, int]] = {}
    octets: dict[str, int] = {}
    vips = state.maps["vip_counters"]
    for key, index in book.indices.items():
        each = vips[index]
        counts = _summed(cpu.outcome for cpu in each)
        outcomes[key] = {name: n for name, n in zip(names, counts, strict=True) if n}
        octets[key] = sum(int(cpu.octets) for cpu in each)
    backends = state.maps["backend_counters"]
    found = {}
    for name, number in book.backends.items():
        each = backends[number]
        found[name] = BackendCount(
            sum(int(cpu.packets) for cpu in each), sum(int(cpu.octets) for cpu in each)
        )
    malformed = names.index("malformed")
    return BalancerCounters(
        outcomes,
        octets,
        found,
        sum(int(cpu.outcome[malformed]) for cpu in vips[0]),
        read_failures(state.directory),
    )


def _summed(rows: Iterable[Any]) -> list[int]:
    return [sum(int(n) for n in column) for column in zip(*rows, strict=True)]


__all__ = ["DROPPED", "SENT", "BackendCount", "BalancerCounters", "read_counters"]
