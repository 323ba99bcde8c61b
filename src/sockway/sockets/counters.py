"""Counters of what the router decided: per VIP and decision, per generation and worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sockway.sockets import layout
from sockway.sockets.state import RouterState


@dataclass(frozen=True)
class WorkerCount:
    """Packets that one worker of a generation got."""

    new_flows: int
    """Packets that opened a flow, or came without one."""
    owned: int
    """Packets of flows that the worker owned already."""

    @property
    def packets(self) -> int:
        """All of them."""
        return self.new_flows + self.owned


@dataclass(frozen=True)
class Counters:
    """A reading of a service's counters, in packets since the service was created."""

    decisions: dict[str, dict[str, int]]
    """Per VIP (its URL without options): packets per decision, those that came up.

    `other` counts packets for sockets that are no VIP of the service.
    """
    workers: dict[int, list[WorkerCount]] = field(default_factory=dict)
    """Per live generation, by its number: one count for each worker."""

    def total(self, decision: str) -> int:
        """Packets with this decision, over all VIPs."""
        return sum(vip.get(decision, 0) for vip in self.decisions.values())


def read_decisions(state: RouterState, index: int) -> dict[str, int]:
    """Packets per decision of the VIP with this counter index; zeros left out."""
    per_cpu = state.maps["vip_counters"][index]
    names = layout.decisions()
    sums = (sum(int(cpu.decision[at]) for cpu in per_cpu) for at in range(len(names)))
    return {name: total for name, total in zip(names, sums, strict=True) if total}


def read_worker(state: RouterState, number: int, worker: int) -> WorkerCount:
    """What the worker of the generation with this number got."""
    per_cpu = state.maps["worker_counters"][_worker_index(number, worker)]
    return WorkerCount(
        sum(int(cpu.new_flows) for cpu in per_cpu), sum(int(cpu.owned) for cpu in per_cpu)
    )


def read_worker_by_cpu(state: RouterState, number: int, worker: int) -> list[int]:
    """Packets that the worker of the generation got, by the CPU on which they came in."""
    per_cpu = state.maps["worker_counters"][_worker_index(number, worker)]
    return [int(cpu.new_flows) + int(cpu.owned) for cpu in per_cpu]


def clear_worker(state: RouterState, number: int, worker: int) -> None:
    """Start the worker's counts at 0: the slot was an earlier generation's."""
    counters: Any = state.maps["worker_counters"]
    index = _worker_index(number, worker)
    counters[index] = [layout.struct("worker_counters")() for _ in counters[index]]


def clear_vip(state: RouterState, index: int) -> None:
    """Start a VIP's counts at 0: the index was another's."""
    counters: Any = state.maps["vip_counters"]
    counters[index] = [layout.struct("vip_counters")() for _ in counters[index]]


def _worker_index(number: int, worker: int) -> int:
    return (number % layout.limit("GENERATIONS")) * layout.limit("WORKERS") + worker
