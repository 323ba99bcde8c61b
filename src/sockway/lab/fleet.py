"""A fleet in the lab: backends that serve VIPs, and balancers before them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from sockway.balancer import Balancer, BalancerSpec
from sockway.balancer.host import Host, HostSpec
from sockway.errors import SockwayError
from sockway.lab import stamped
from sockway.lab.network import LINK, Lab, Node
from sockway.lab.supervised import Http3Service
from sockway.lab.topology import Topology

SECRET = "one secret for all balancers of the lab"  # noqa: S105 - nothing of it leaves this machine
VIPS = Topology().vips
"""Where a topology names no others."""
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
    stamps: bool = False
    """Whether TCP connections carry their server's ID; clients are `as_client` then."""
    quic_ids: Sequence[Mapping[str, Any]] = ()
    """Configurations of connection IDs, which balancers get by `apply`. If there are any at first,
    HTTP/3 is served by services of `sockway serve`, which mint by the first one then."""
    read_quic_ids: bool = True
    """Whether balancers read them."""
    health: dict[str, Any] | None = None
    """The pool's health check."""
    settings: dict[str, Any] = field(default_factory=dict)
    """More of the balancers' configuration."""
    members: dict[str, int] = field(default_factory=dict)
    """Weights of the backends in the pool."""
    lost: set[str] = field(default_factory=set)
    """Balancers that are dead."""
    http3_services: dict[str, Http3Service] = field(default_factory=dict)
    """Of the backends, where there are `quic_ids`."""

    @property
    def vips(self) -> tuple[str, str]:
        """IPv4 and IPv6: the topology's."""
        return self.lab.topology.vips

    @property
    def _hosts(self) -> tuple[str, str]:
        """The VIPs as they are before a port."""
        return self.vips[0], f"[{self.vips[1]}]"

    def start(self, pool: int | None = None) -> None:
        """Set all backends up, then all balancers.

        Args:
            pool: how many of the backends are in the pool at first; all if not given.

        Raises:
            SockwayError: a part of it does not start.

        """
        started = [(node, self.begin_backend(node)) for node in self.lab.of("backend")]
        for node, process in started:
            self._await(node, process)
        self.members = {node.name: 100 for node, _ in started[:pool]}
        self.apply()

    def start_backend(self, node: Node) -> None:
        """Set a host up as a backend, and start its server; it is in no pool yet.

        Raises:
            SockwayError: the server does not start.

        """
        self._await(node, self.begin_backend(node))

    def begin_backend(self, node: Node) -> subprocess.Popen[str]:
        """The same without waiting for the server, which says that it is ready."""
        spec = HostSpec(
            interfaces=[LINK],
            balancers=[ip_network("10.77.0.0/16"), ip_network("fd77::/32")],
            vips=[ip_address(vip) for vip in self.vips],
            mode=self.open_by,
        )
        node.run(lambda: Host.up(spec))
        places = [f"{host}:{HTTP}" for host in self._hosts]
        if self.http3 and not self.quic_ids:
            places += [f"h3={host}:{HTTP3}" for host in self._hosts]
        elif self.http3:
            service = Http3Service(
                self.lab, node, [f"{host}:{HTTP3}" for host in self._hosts],
                self.server_id(node.name),
            )  # fmt: skip
            service.begin(self.quic_ids[0])
            self.http3_services[node.name] = service
        command = [sys.executable, "-m", "sockway.lab.servers.named", node.name, *places]
        options: dict[str, Any] = {}
        if self.stamps:
            name = self.lab.topology.name
            stamped.stamp_server(name, node.name, self.server_id(node.name), HTTP)
            options["preexec_fn"] = stamped.enter(name, node.name)
        with self._log(node) as log:
            return node.popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                **options,
            )

    def server_id(self, name: str) -> int:
        """Of a backend: its link's number, which nobody else has."""
        plan = self.lab.node(name).plan
        return plan.number if plan else 0

    def as_client(self) -> contextlib.AbstractContextManager[object]:
        """Have sockets that this process makes meanwhile be of clients that stamp, if any do."""
        if not self.stamps:
            return contextlib.nullcontext()
        return stamped.as_client(self.lab.topology.name, list(self.vips), HTTP)

    def spec(self, members: Iterable[tuple[str, int]]) -> BalancerSpec:
        """The balancers' configuration with these backends."""
        backends = {}
        for name, weight in members:
            plan = self.lab.node(name).plan
            if plan:
                address = plan.address4 if self.tunnel == 4 else plan.address6  # noqa: PLR2004
                backends[name] = {"address": address, "weight": weight}
                if self.stamps or self.quic_ids:
                    backends[name]["server_id"] = self.server_id(name)
        ports = [("tcp", HTTP), ("udp", HTTP), *([("udp", HTTP3)] if self.http3 else [])]
        vips = [
            {
                "listen": f"{protocol}://{host}:{port}",
                "pool": POOL,
                "stamps": self._carries_ids(protocol, port),
            }
            for protocol, port in ports
            for host in self._hosts
        ]
        pool: dict[str, Any] = {"encapsulation": self.encapsulation, "backends": backends}
        if self.health is not None:
            pool["health"] = self.health
        stamp = {"kind": stamped.CLIENT_KIND} if self.stamps else None
        return BalancerSpec.model_validate({
            "interfaces": [LINK], "secret": SECRET, "pool": {POOL: pool}, "vip": vips,
            "stamp": stamp,
            "quic_ids": [dict(each) for each in self.quic_ids], **self.settings,
        })  # fmt: skip

    def _carries_ids(self, protocol: str, port: int) -> bool:
        if protocol == "tcp":
            return self.stamps
        return port == HTTP3 and bool(self.quic_ids) and self.read_quic_ids

    def apply(self, balancers: Sequence[Node] | None = None) -> None:
        """Bring the present members into force on all balancers, one after the other."""
        spec = self.spec(self.members.items())
        for node in self.lab.of("balancer") if balancers is None else balancers:
            if node.name not in self.lost:
                node.run(lambda: _apply(spec))

    def lose(self, node: Node) -> None:
        """Have a balancer die, and all that it remembers with it: its host drops what comes."""
        self.lost.add(node.name)
        node.run(lambda: Balancer.existing().remove())

    def replace(self, node: Node) -> None:
        """Have a new balancer in the place of a dead one: it knows the configuration alone."""
        self.lost.discard(node.name)
        self.apply([node])

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

    def _await(self, node: Node, process: subprocess.Popen[str]) -> None:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise SockwayError(f"the server of {node.name} does not start")
        process.stdout.close()
        if node.name in self.http3_services:
            self.http3_services[node.name].wait()

    def _log(self, node: Node) -> Any:
        return (self.lab.directory / f"{node.name}.log").open("w", encoding="utf-8")


def _apply(spec: BalancerSpec) -> None:
    with Balancer.open(spec) as balancer:
        balancer.apply(spec)


__all__ = ["HTTP", "HTTP3", "POOL", "SECRET", "VIPS", "Fleet"]
