"""The experiment `resets`: connections that last, while backends and balancers come and go.

What a balancer knows of a flow decides whether it breaks: nothing but the ring (`ring`), a
connection table (`table`), the ring's own history (`history`), or nothing but the ring, while
packets carry their server's ID (`stamps`). Where the kernel has it, IPVS is one more (`ipvs`):
a ring and a connection table. Backends that are taken out of the pool go on serving:
what breaks is broken by the balancer alone.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from sockway.errors import SockwayError
from sockway.lab.fleet import HTTP, VIPS, Fleet
from sockway.lab.ipvs import IpvsFleet
from sockway.lab.lasting import LastingConnections
from sockway.lab.network import LINK, Lab, Node
from sockway.lab.topology import Topology

System = Literal["ring", "table", "ipvs", "history", "stamps"]
SYSTEMS: Final[tuple[System, ...]] = ("ring", "table", "ipvs", "history", "stamps")
MEMORY: Final = {"ring": "none", "table": "table", "history": "history", "stamps": "none"}
_SHIFT_EVERY: Final = 5
_LEAST: Final = 3
_KINDS: Final = 3
"""Of changes of balancers; they begin anew with the other balancer."""


@dataclass(frozen=True)
class Plan:
    """What happens; the same for each system."""

    connections: int = 1000
    """That are open at any time."""
    changes: int = 50
    """Backends added or removed, one after the other."""
    backends: int = 8
    """Of which half are in the pool at first, and 3 at the least."""
    churn: int = 20
    """Connections that end by themselves between two changes, and are followed by new ones."""
    shift: bool = False
    """Whether balancers change too, at each fifth change: the router sends all to the other one,
    that dies with all that it remembers, a new one joins and gets its share."""
    netem: str = ""
    """What the links of clients do to packets, in words of tc-netem(8); nothing if empty."""
    seed: int = 1


@dataclass
class Course:
    """What became of it under one system."""

    system: System
    plan: Plan
    resets: list[int] = field(default_factory=list)
    """Connections that broke after each change."""
    opened: int = 0
    """Connections that there were in all."""
    apply_seconds: list[float] = field(default_factory=list)
    """What a change took, on both balancers together."""
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Connections that broke."""
        return sum(self.resets)


def run(system: System, plan: Plan, tell: Callable[[Course], None]) -> Course:
    """Run the plan under one system, in a lab of its own; `tell` is called after each change.

    Raises:
        SockwayError: a part of the lab does not come up.

    """
    began = time.monotonic()
    course = Course(system, plan)
    chance = random.Random(plan.seed)
    targets = [(vip, HTTP) for vip in VIPS]
    with Lab.up(Topology(name=f"r{system[:6]}", backends=plan.backends)) as lab:
        # The secret is the lab's: rings of both balancers agree, as they do in a fleet.
        fleet = (
            IpvsFleet(lab, http3=False)
            if system == "ipvs"
            else Fleet(
                lab, settings={"memory": MEMORY[system]}, http3=False, stamps=system == "stamps"
            )
        )
        fleet.start(plan.backends // 2)
        everyone = sorted(node.name for node in lab.of("backend"))
        clients = lab.of("client")
        for client in clients if plan.netem else ():
            _spoil(client, plan.netem)
        with (
            fleet.as_client(),
            LastingConnections.open(clients, targets, plan.connections) as connections,
        ):
            course.opened = plan.connections
            for change in range(plan.changes):
                _change(fleet, everyone, chance)
                started = time.monotonic()
                fleet.apply()
                course.apply_seconds.append(time.monotonic() - started)
                if plan.shift and change % _SHIFT_EVERY == _SHIFT_EVERY - 1:
                    _shift(fleet, change // _SHIFT_EVERY)
                fates = connections.ask()
                course.resets.append(plan.connections - fates["alive"])
                course.opened += connections.renew(clients, targets, plan.churn)
                tell(course)
    course.seconds = time.monotonic() - began
    return course


def _spoil(node: Node, netem: str) -> None:
    command = ["tc", "qdisc", "add", "dev", LINK, "root", "netem", *netem.split()]
    with node.popen(command, stderr=subprocess.PIPE, text=True) as process:
        _, wrong = process.communicate()
    if process.returncode:
        raise SockwayError(f"{' '.join(command)} on {node.name}: {wrong.strip()}")


def _change(fleet: Fleet, everyone: list[str], chance: random.Random) -> None:
    """Take a backend out of the pool, or into it.

    Who leaves stays in the configuration with no weight, as long as it has connections: a balancer
    that joins meanwhile must know it.
    """
    inside = sorted(name for name, weight in fleet.members.items() if weight)
    outside = sorted(set(everyone) - set(inside))
    if not outside or (len(inside) > _LEAST and chance.random() < 0.5):  # noqa: PLR2004
        fleet.members[chance.choice(inside)] = 0
    else:
        fleet.members[chance.choice(outside)] = 100


def _shift(fleet: Fleet, number: int) -> None:
    """Change the balancers."""
    one, other = fleet.lab.of("balancer")[:2]
    if number // _KINDS % 2:
        one, other = other, one
    match number % _KINDS:
        case 0:
            fleet.lab.route_vips([other.name])
        case 1:
            fleet.lose(other)
            fleet.lab.route_vips([one.name])
        case _:
            fleet.replace(other)
            fleet.lab.route_vips([one.name, other.name])


__all__ = ["SYSTEMS", "Course", "Plan", "System", "run"]
