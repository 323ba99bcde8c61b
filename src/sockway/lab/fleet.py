"""A fleet in the lab: backends that serve VIPs, and balancers before them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from sockway.balancer import Balancer, BalancerSpec
from sockway.balancer.host import Host, HostSpec
from sockway.errors import SockwayError
from sockway.lab.network import LINK, Lab, Node

SECRET = "one secret for all balancers of the lab"  # noqa: S105 - nothing of it leaves this machine
VIPS = ("192.0.2.1", "2001:db8:1::1")
HTTP = 80
"""TCP and UDP."""
HTTP3 = 443
"""UDP."""
POOL = "servers"


@dataclass
class Fleet:
    """What runs in a lab. Its processes end with the lab."""

    lab: Lab
    encapsulation: Literal["ip", "gue"] = "ip"
    tunnel: Literal[4, 6] = 4
    """IP version of the tunnels."""
    http3: bool = True
    open_by: Literal["auto", "generic", "tc"] = "auto"
    """Where backends open tunnels."""
    health: dict[str, Any] | None = None
    """The pool's health check."""
    settings: dict[str, Any] = field(default_factory=dict)
    """More of the balancers' configuration."""
    members: dict[str, int] = field(default_factory=dict)
    """Weights of the backends in the pool."""

    def start(self, pool: int | None = None) -> None:
        """Set all backends up, then all balancers.

        Args:
            pool: how many of the backends are in the pool at first; all if not given.

        Raises:
            SockwayError: a part of it does not start.

        """
        started = [(node, self.begin_backend(node)) for node in self.lab.of("backend")]
        for node, process in started:
            _await(node, process)
        self.members = {node.name: 100 for node, _ in started[:pool]}
        self.apply()

    def start_backend(self, node: Node) -> None:
        """Set a host up as a backend, and start its server; it is in no pool yet.

        Raises:
            SockwayError: the server does not start.

        """
        _await(node, self.begin_backend(node))

    def begin_backend(self, node: Node) -> subprocess.Popen[str]:
        """The same without waiting for the server, which says that it is ready."""
        spec = HostSpec(
            interfaces=[LINK],
            balancers=[ip_network("10.77.0.0/16"), ip_network("fd77::/32")],
            vips=[ip_address(vip) for vip in VIPS],
            mode=self.open_by,
        )
        node.run(lambda: Host.up(spec))
        hosts = (VIPS[0], f"[{VIPS[1]}]")
        places = [f"{host}:{HTTP}" for host in hosts]
        if self.http3:
            places += [f"h3={host}:{HTTP3}" for host in hosts]
        command = [sys.executable, "-m", "sockway.lab.servers.named", node.name, *places]
        with self._log(node) as log:
            return node.popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )

    def spec(self, members: Iterable[tuple[str, int]]) -> BalancerSpec:
        """The balancers' configuration with these backends."""
        backends = {}
        for name, weight in members:
            plan = self.lab.node(name).plan
            if plan:
                address = plan.address4 if self.tunnel == 4 else plan.address6  # noqa: PLR2004
                backends[name] = {"address": address, "weight": weight}
        ports = [("tcp", HTTP), ("udp", HTTP), *([("udp", HTTP3)] if self.http3 else [])]
        vips = [
            {"listen": f"{protocol}://{host}:{port}", "pool": POOL}
            for protocol, port in ports
            for host in (VIPS[0], f"[{VIPS[1]}]")
        ]
        pool: dict[str, Any] = {"encapsulation": self.encapsulation, "backends": backends}
        if self.health is not None:
            pool["health"] = self.health
        return BalancerSpec.model_validate({
            "interfaces": [LINK], "secret": SECRET, "pool": {POOL: pool}, "vip": vips,
            **self.settings,
        })  # fmt: skip

    def apply(self, balancers: Sequence[Node] | None = None) -> None:
        """Bring the present members into force on all balancers, one after the other."""
        spec = self.spec(self.members.items())
        for node in self.lab.of("balancer") if balancers is None else balancers:
            node.run(lambda: _apply(spec))

    def kill(self, node: Node) -> None:
        """Have a host die: its processes, and its link."""
        for pid in node.processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.set_link(up=False)

    def stop(self) -> None:
        """Undo what is set up on the hosts; the lab's end takes the rest."""
        for node in self.lab.of("balancer"):
            with suppress(SockwayError):
                node.run(lambda: Balancer.existing().remove())
        for node in self.lab.of("backend"):
            with suppress(SockwayError):
                node.run(lambda: Host.existing().down())

    def _log(self, node: Node) -> Any:
        return (self.lab.directory / f"{node.name}.log").open("w", encoding="utf-8")


def _apply(spec: BalancerSpec) -> None:
    with Balancer.open(spec) as balancer:
        balancer.apply(spec)


def _await(node: Node, process: subprocess.Popen[str]) -> None:
    if process.stdout is None or process.stdout.readline() != "ready\n":
        raise SockwayError(f"the server of {node.name} does not start")
    process.stdout.close()


__all__ = ["HTTP", "HTTP3", "POOL", "SECRET", "VIPS", "Fleet"]
