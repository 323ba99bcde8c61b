"""Which way routers of a lab send what: they are a tree, and VIPs are wherever a balancer is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sockway.lab.topology import LINK, NodePlan, Topology


@dataclass(frozen=True)
class Hop:
    """The next on the way."""

    gateway4: str
    gateway6: str
    interface: str
    weight: int = 1


def to_vips(topology: Topology, router: str, balancers: Sequence[NodePlan]) -> list[Hop]:
    """The next hops from a router to the nearest balancers, as heavy as they are many.

    To the nearest only: each hop is nearer than the one before, so nothing goes round in circles.
    """
    ways = [(topology.path(router, plan.router), plan) for plan in balancers]
    least = min((len(path) for path, _ in ways), default=0)
    hops = Counter(_hop(topology, router, path, plan) for path, plan in ways if len(path) == least)
    return [Hop(hop.gateway4, hop.gateway6, hop.interface, weight) for hop, weight in hops.items()]


def _hop(topology: Topology, router: str, path: Sequence[str], plan: NodePlan) -> Hop:
    """The first step of a way to a host."""
    if len(path) == 1:
        return Hop(plan.address4, plan.address6, plan.name)
    uplinks = {each.name: each for each in topology.uplinks}
    below = uplinks.get(path[1])
    if below and below.router == router:
        return Hop(below.address4, below.address6, below.name)
    own = uplinks[router]
    return Hop(own.router4, own.router6, LINK)


def downward(topology: Topology, router: str) -> list[tuple[str, str]]:
    """Networks below a router's lower routers, and the gateways to them; all else goes up."""
    found = []
    for plan in (*topology.nodes, *topology.uplinks):
        path = topology.path(router, plan.router)
        if len(path) == 1:
            continue
        hop = _hop(topology, router, path, plan)
        if hop.interface != LINK:
            found += [(str(plan.network4), hop.gateway4), (str(plan.network6), hop.gateway6)]
    return found


__all__ = ["Hop", "downward", "to_vips"]
