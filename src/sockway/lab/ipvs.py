"""IPVS, the kernel's own balancer, before the backends of a fleet: one more baseline.

Set up as it can do best against changes: the scheduler `mh` is a Maglev ring over addresses and
ports, `sloppy_tcp` lets a balancer take over connections that another one began, a backend that
leaves the pool keeps its connections (weight 0), and packets go through IP-in-IP tunnels straight
to the backends, as Sockway's do. Balancers share nothing: connections are not synchronised.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from sockway.errors import SockwayError
from sockway.kernel import Netns
from sockway.lab.fleet import HTTP, Fleet
from sockway.lab.network import Node

_COMMAND: Final = "ipvsadm"
_SETTINGS: Final = {"sloppy_tcp": "1", "expire_nodest_conn": "0", "conntrack": "0"}
_SCHEDULER: Final = ("-s", "mh", "-b", "mh-fallback,mh-port")
_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass
class IpvsFleet(Fleet):
    """A fleet whose balancers are IPVS; its backends are the same."""

    set_up: dict[str, dict[str, int]] = field(default_factory=dict)
    """Weights by backend that each balancer has."""

    def apply(self, balancers: Sequence[Node] | None = None) -> None:
        """Bring the present members to all balancers, one after the other.

        Raises:
            SockwayError: the kernel or ipvsadm refused something.

        """
        for node in self.lab.of("balancer") if balancers is None else balancers:
            if node.name not in self.lost:
                node.run(lambda name=node.name: self._bring(name))  # type: ignore[misc]

    def lose(self, node: Node) -> None:
        """Have a balancer die, and all that it remembers with it."""
        self.lost.add(node.name)
        self.set_up.pop(node.name, None)
        node.run(self._clear)

    def stop(self) -> None:
        """Undo what is set up on the hosts."""
        for node in self.lab.of("balancer"):
            node.run(self._clear)
        super().stop()

    def _services(self) -> list[str]:
        return [f"{host}:{HTTP}" for host in self._hosts]

    def _bring(self, name: str) -> None:
        """Bring one balancer from what it has to the present members; called on its host."""
        if name not in self.set_up:
            for vip in self.vips:
                # IPVS sees what is for this host; so the VIP has to be its own.
                _run("ip", "address", "replace", f"{vip}/{ip_address(vip).max_prefixlen}",
                     "dev", "lo")  # fmt: skip
            for service in self._services():
                _run(_COMMAND, "-A", "-t", service, *_SCHEDULER)
            for setting, value in _SETTINGS.items():
                Path("/proc/sys/net/ipv4/vs", setting).write_text(value, encoding="ascii")
            self.set_up[name] = {}
        known = self.set_up[name]
        for backend, weight in self.members.items():
            if known.get(backend) == weight:
                continue
            plan = self.lab.node(backend).plan
            assert plan is not None  # noqa: S101 - members have links
            how = "-e" if backend in known else "-a"
            for service in self._services():
                _run(_COMMAND, how, "-t", service, "-r", f"{plan.address4}:{HTTP}", "-i",
                     "-w", str(weight))  # fmt: skip
            known[backend] = weight

    def _clear(self) -> None:
        _run(_COMMAND, "-C")
        for vip in self.vips:
            prefix = f"{vip}/{ip_address(vip).max_prefixlen}"
            subprocess.run(
                ["ip", "address", "del", prefix, "dev", "lo"],
                check=False, capture_output=True, env=os.environ | {"PATH": _PATH},
            )  # fmt: skip


def lacking() -> str:
    """Return why IPVS can't be a baseline here; empty if it can."""
    if shutil.which(_COMMAND, path=_PATH) is None:
        return f"{_COMMAND} is not installed (Debian: {_COMMAND})"
    with Netns.create() as namespace:
        try:
            namespace.run(lambda: _run(_COMMAND, "-L", "-n"))
        except SockwayError as error:
            return f"this kernel has no IPVS ({error.message})"
    return ""


def _run(*words: str) -> None:
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, env=os.environ | {"PATH": _PATH}
    )
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise SockwayError(f"{' '.join(words)}: {told[-1] if told else done.returncode}")


__all__ = ["IpvsFleet", "lacking"]
