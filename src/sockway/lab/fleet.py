"""A fleet in the lab: backends that serve VIPs, and balancers before them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from sockway.balancer import Balancer, BalancerSpec
from sockway.balancer.host import Host, HostSpec
from sockway.errors import SockwayError
from sockway.lab.network import LINK, Lab, Node

SECRET = "one secret for all balancers of the lab"  # noqa: S105 - nothing of it leaves this machine
READY = 10.0  # seconds that a server may take to start
VIPS = ("192.0.2.1", "2001:db8:1::1")


@dataclass
class Fleet:
    """What runs in a lab."""

    lab: Lab
    encapsulation: Literal["ip", "gue"] = "ip"
    tunnel: Literal[4, 6] = 4
    """IP version of the tunnels."""
    port: int = 443
    settings: dict[str, Any] = field(default_factory=dict)
    """More of the balancers' configuration."""
    members: dict[str, int] = field(default_factory=dict)
    """Weights of the backends in the pool."""

    def start(self) -> None:
        """Set all backends up, then all balancers."""
        for node in self.lab.of("backend"):
            self.start_backend(node)
            self.members[node.name] = 100
        self.apply()

    def start_backend(self, node: Node) -> subprocess.Popen[str]:
        """Set a host up as a backend, and start its server.

        Raises:
            SockwayError: the server does not start.

        """
        spec = HostSpec(
            interfaces=[LINK],
            balancers=[ip_network("10.77.0.0/16"), ip_network("fd77::/32")],
            vips=[ip_address(vip) for vip in VIPS],
        )
        node.run(lambda: Host.up(spec))
        places = [f"{VIPS[0]}:{self.port}", f"[{VIPS[1]}]:{self.port}"]
        command = [sys.executable, "-m", "sockway.lab.servers.named", node.name, *places]
        process = node.popen(command, stdout=subprocess.PIPE, text=True)
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise SockwayError(f"the server of {node.name} does not start")
        process.stdout.close()
        return process

    def spec(self, members: Iterable[tuple[str, int]]) -> BalancerSpec:
        """The balancers' configuration with these backends."""
        backends = {}
        for name, weight in members:
            plan = self.lab.node(name).plan
            if plan:
                address = plan.address4 if self.tunnel == 4 else plan.address6  # noqa: PLR2004
                backends[name] = {"address": address, "weight": weight}
        hosts = (VIPS[0], f"[{VIPS[1]}]")
        vips = [
            {"listen": f"{protocol}://{host}:{self.port}", "pool": "servers"}
            for protocol in ("tcp", "udp")
            for host in hosts
        ]
        pool = {"encapsulation": self.encapsulation, "backends": backends}
        return BalancerSpec.model_validate({
            "interfaces": [LINK], "secret": SECRET, "pool": {"servers": pool}, "vip": vips,
            **self.settings,
        })  # fmt: skip

    def apply(self, balancers: Sequence[Node] | None = None) -> None:
        """Bring the present members into force on all balancers, one after the other."""
        spec = self.spec(self.members.items())
        for node in self.lab.of("balancer") if balancers is None else balancers:
            node.run(lambda: _apply(spec))


def _apply(spec: BalancerSpec) -> None:
    with Balancer.open(spec) as balancer:
        balancer.apply(spec)


__all__ = ["SECRET", "VIPS", "Fleet"]
