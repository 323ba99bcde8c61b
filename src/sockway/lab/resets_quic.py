"""The part of the experiment `resets` about QUIC: everything changes below connections that last.

Servers are services of two workers, whose connection IDs name server, generation and worker. Under
both systems balancers keep nothing; under `stamps` they read the IDs. A connection that is
answered by another worker than at first counts as broken, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, Literal

from sockway.lab.drawing import colour, panel
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric, Plot, Table
from sockway.lab.fleet import HTTP3, VIPS, Fleet
from sockway.lab.lasting_quic import LastingQuics
from sockway.lab.network import Lab
from sockway.lab.topology import Topology

System = Literal["ring", "stamps"]
NAMES: Final[Mapping[System, str]] = {
    "ring": "ring only",
    "stamps": "connection IDs that are read (Sockway)",
}
KINDS: Final = (
    "a backend releases its server",
    "a backend leaves the pool, or comes back",
    "clients come from other ports",
    "another balancer takes over",
)
"""Of changes, by turns."""
IDS: Final = (
    {"rotation": 0, "server_id_length": 3, "nonce_length": 4},
    {"rotation": 1, "server_id_length": 3, "nonce_length": 7,
     "key": "8f95f09245765f80256934e50c66207f"},
    {"rotation": 2, "server_id_length": 2, "nonce_length": 8,
     "key": "2b7e151628aed2a6abf7158809cf4f3c"},
)  # fmt: skip
"""What servers mint by, another one with each release: in clear, and encrypted."""
_TARGETS: Final = [(vip, HTTP3) for vip in VIPS]


@dataclass(frozen=True)
class Plan:
    """What happens; the same for each system."""

    connections: int = 200
    """That are open at any time."""
    changes: int = 24
    backends: int = 3
    patience: float = 3.0
    """Seconds without an answer that count as broken; aioquic sends again after some tenths."""
    seed: int = 1


@dataclass
class Course:
    """What became of it under one system."""

    plan: Plan
    broken: list[int] = field(default_factory=list)
    """Connections that broke after each change."""
    opened: int = 0
    """Connections that there were in all."""

    @property
    def total(self) -> int:
        """Connections that broke."""
        return sum(self.broken)

    def by_kind(self) -> list[int]:
        """How many broke by each kind of change."""
        return [sum(self.broken[kind :: len(KINDS)]) for kind in range(len(KINDS))]


def run(system: System, plan: Plan, tell: Callable[[Course], None]) -> Course:
    """Run the plan under one system, in a lab of its own; `tell` is called after each change.

    Raises:
        SockwayError: a part of the lab does not come up.

    """
    course = Course(plan)
    chance = random.Random(plan.seed)
    with Lab.up(Topology(name=f"q{system}", backends=plan.backends)) as lab:
        fleet = Fleet(
            lab, settings={"memory": "none"}, quic_ids=IDS, read_quic_ids=system == "stamps"
        )
        fleet.start()
        clients = lab.of("client")
        with LastingQuics() as connections:
            connections.open(clients, _TARGETS, plan.connections)
            course.opened = plan.connections
            for number in range(plan.changes):
                _change(fleet, connections, number, chance)
                course.broken.append(plan.connections - connections.ask(plan.patience)["alive"])
                course.opened += connections.renew(clients, _TARGETS)
                tell(course)
    return course


def _change(fleet: Fleet, connections: LastingQuics, number: int, chance: random.Random) -> None:
    turn, kind = divmod(number, len(KINDS))
    names = sorted(fleet.members)
    match kind:
        case 0:
            service = fleet.http3_services[names[turn % len(names)]]
            service.release(IDS[(turn + 1) % len(IDS)])
        case 1:
            # Who leaves keeps its place, for the sake of those that are connected to it.
            gone = [name for name in names if not fleet.members[name]]
            fleet.members[gone[0] if gone else chance.choice(names)] = 100 if gone else 0
            fleet.apply()
        case 2:
            connections.rebind(len(connections.members) // 4)
        case _:
            one, other = fleet.lab.of("balancer")[:: 1 if turn % 2 else -1]
            fleet.lab.route_vips([one.name])
            fleet.lose(other)
            fleet.replace(other)  # it knows the configuration alone, and is not asked yet


def findings(setting: Setting) -> Findings:
    """Both systems, a plot and a table.

    Raises:
        SockwayError: a part of the lab does not come up.

    """
    plan = Plan(200, 40, seed=setting.seed)
    if setting.quick:
        plan = Plan(24, len(KINDS), backends=2, patience=1.5, seed=setting.seed)
    courses: dict[System, Course] = {}
    for system, name in NAMES.items():
        with setting.step(f"{name}, QUIC", plan.changes, "changes") as step:
            courses[system] = run(
                system,
                plan,
                lambda course, step=step: step.at(  # type: ignore[misc]
                    len(course.broken), f"{course.total:,} broken"
                ),
            )
    return found(courses, setting)


def found(courses: Mapping[System, Course], setting: Setting) -> Findings:
    """The courses as findings; the plot is drawn."""
    plot = Plot(
        name="resets-quic", title="QUIC, while everything changes", sentence=sentence(courses)
    )
    plan = next(iter(courses.values())).plan
    with panel(setting.output, plot) as axes:
        for system, course in courses.items():
            axes.step(
                range(len(course.broken) + 1), [0, *accumulate(course.broken)], where="post",
                color=colour(system), linewidth=2,
                label=f"{NAMES[system]}: {course.total:,} of {course.opened:,}",
            )  # fmt: skip
        axes.set_xlabel("changes: release, pool, ports, balancer, by turns")
        axes.set_ylabel("connections broken, in all")
        axes.legend(loc="upper left")
        axes.margins(x=0, y=0.35)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, plan.changes + 0.5)
        axes.locator_params(axis="x", integer=True)
    rows = [
        [kind, *(f"{course.by_kind()[number]:,}" for course in courses.values())]
        for number, kind in enumerate(KINDS)
    ]
    total = [f"{course.total:,} of {course.opened:,}" for course in courses.values()]
    table = Table(
        title="QUIC connections broken, by what changed",
        columns=["what changed", *(NAMES[system] for system in courses)],
        rows=[*rows, ["all", *total]],
    )
    note = (
        f"QUIC: {plan.connections:,} connections of aioquic are open at any time, to "
        f"{plan.backends} backends with two workers a generation; for those that break new ones "
        "are opened. A quarter of the clients change their ports at a time. Balancers keep nothing."
    )
    systems = {
        str(system): {
            "quic_resets": Metric.count(course.total, "connections", course.opened),
            "quic_sent": Metric.count(course.opened, "connections"),
        }
        for system, course in courses.items()
    }
    return Findings(systems=systems, plots=[plot], tables=[table], notes=[note])


def sentence(courses: Mapping[System, Course]) -> str:
    """What the plot shows."""
    changes = max(len(course.broken) for course in courses.values())
    told = [
        f"{course.total / course.opened:.1%} of {course.opened:,} with {NAMES[system]}"
        if course.total
        else f"none of {course.opened:,} with {NAMES[system]}"
        for system, course in courses.items()
    ]
    return (
        f"{changes} changes of servers, pool, clients' ports and balancers broke of the QUIC "
        f"connections: {', '.join(told)}."
    )


__all__ = ["IDS", "KINDS", "NAMES", "Course", "Plan", "findings", "found", "run", "sentence"]
