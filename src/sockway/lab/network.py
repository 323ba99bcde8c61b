"""A topology as network namespaces that are joined by veth pairs.

All state is in the kernel, under names that say whose it is (`sockway-<lab>-<node>`), so that
`Lab.existing` finds a lab again and `down` takes away what any process left, a killed one too.
Nothing outside of these namespaces is touched: the pairs are made inside them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from sockway.balancer.host import runtime_directory
from sockway.balancer.state import directory_of
from sockway.errors import NotFoundError, SockwayError, StateError
from sockway.kernel import Netns
from sockway.kernel.pins import permitted
from sockway.lab import interfaces, namespaces, routing
from sockway.lab.marks import RUN_VARIABLE
from sockway.lab.namespaces import NAMESPACES
from sockway.lab.stamped import forget as forget_stamps
from sockway.lab.topology import LINK, NodePlan, Topology

T = TypeVar("T")

PREFIX: Final = "sockway-"
RUNTIME: Final = Path("/run/sockway-lab")
_MARK: Final = "run"
_PLAN: Final = "topology.json"


class Node:
    """A host of the lab."""

    def __init__(self, lab: str, name: str, plan: NodePlan | None) -> None:
        """Take its name and place; its namespace is there."""
        self.name = name
        self.plan = plan
        """Its place in the network; None: the first router."""
        self.namespace = f"{PREFIX}{lab}-{name}"
        self.netns = Netns.from_path(NAMESPACES / self.namespace)
        self._started: list[subprocess.Popen[Any]] = []

    def run(self, work: Callable[[], T]) -> T:
        """Do something inside it and return what it returned."""
        return self.netns.run(work)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside it; `options` are those of `subprocess.Popen`."""
        process = self.run(lambda: subprocess.Popen(command, **options))
        self._started.append(process)
        return process

    def set_link(self, *, up: bool) -> None:
        """Take its one link down, or up again."""

        def change() -> None:
            with interfaces.netlink() as route:
                index = route.link_lookup(ifname=LINK)[0]
                route.link("set", index=index, state="up" if up else "down")

        self.run(change)

    @property
    def processes(self) -> list[int]:
        """Numbers of the processes inside it."""
        mine = os.stat(NAMESPACES / self.namespace).st_ino  # noqa: PTH116 - the namespace's own
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(entry / "ns/net").st_ino == mine:  # noqa: PTH116
                        found.append(int(entry.name))
        return found

    def close(self) -> None:
        """Let go of it."""
        for process in self._started:
            process.poll()
        self.netns.close()


class Lab:
    """A network that is there. Leaving its `with` block takes it down."""

    def __init__(self, topology: Topology) -> None:
        """Take its plan; see `up` and `existing`."""
        self.topology = topology
        self.nodes: dict[str, Node] = {}
        self._made: list[str] = []
        """Its namespaces, by name: those that are taken away in the end."""

    @classmethod
    def up(cls, topology: Topology) -> Self:
        """Build the network.

        Raises:
            ConfigError: there can't be such a network.
            StateError: a lab of this name is there already, or a namespace that is not its own.
            KernelError: a step failed; nothing is left of it.

        """
        topology.check()
        lab = cls(topology)
        with permitted(RUNTIME):
            lab._claim()
            try:
                lab._build()
            except BaseException:
                # What went wrong first is what is told.
                with contextlib.suppress(Exception):
                    lab.down()
                raise
        return lab

    @classmethod
    def existing(cls, name: str = "lab") -> Self:
        """The lab of this name.

        Raises:
            NotFoundError: there is none.

        """
        try:
            topology = Topology.model_validate_json(
                (RUNTIME / name / _PLAN).read_text(encoding="utf-8")
            )
        except FileNotFoundError:
            raise NotFoundError(f"there is no lab {name!r}", hint="sockway lab up") from None
        lab = cls(topology)
        lab._made = lab._names()
        for node in [None, *topology.uplinks, *topology.nodes]:
            with contextlib.suppress(FileNotFoundError):
                lab._open(node)
        return lab

    def node(self, name: str) -> Node:
        """One host.

        Raises:
            NotFoundError: there is none of this name.

        """
        if name not in self.nodes:
            raise NotFoundError(
                f"there is no node {name!r}", hint=f"nodes are: {', '.join(self.nodes)}"
            )
        return self.nodes[name]

    def of(self, role: str) -> list[Node]:
        """All hosts of a role."""
        return [node for node in self.nodes.values() if node.plan and node.plan.role == role]

    @property
    def directory(self) -> Path:
        """For logs and such of its processes."""
        return RUNTIME / self.topology.name

    def down(self, patience: float = 3.0) -> None:
        """End its processes and take its namespaces away; no error if half of it is missing.

        Raises:
            PermissionDenied: this process may not.

        """
        with permitted(self.directory):
            self._down(patience)

    def _down(self, patience: float) -> None:
        for node in self.nodes.values():
            _end(node.processes, patience)
            with contextlib.suppress(OSError):
                node.run(_forget)
            node.close()
        self.nodes.clear()
        forget_stamps(self.topology.name)
        while self._made:
            namespaces.remove(self._made.pop())
        shutil.rmtree(self.directory, ignore_errors=True)

    def route_vips(self, balancers: Sequence[str]) -> None:
        """Have routers send VIPs to the nearest of these balancers; others get nothing."""
        plans = [plan for node in self.of("balancer") if (plan := node.plan)]
        chosen = [plan for plan in plans if plan.name in balancers]
        for each in self.topology.routers:
            hops = routing.to_vips(self.topology, each.name, chosen)
            self.node(each.name).run(lambda: self._send_vips(hops))  # noqa: B023 - run at once

    def _send_vips(self, hops: Sequence[routing.Hop]) -> None:
        with interfaces.netlink() as route:
            for prefix, version in ((self.topology.vips4, 4), (self.topology.vips6, 6)):
                multipath = [
                    {
                        "gateway": hop.gateway4 if version == 4 else hop.gateway6,  # noqa: PLR2004
                        "oif": route.link_lookup(ifname=hop.interface)[0],
                        "hops": hop.weight - 1,
                    }
                    for hop in hops
                ]
                verb = "replace" if hops else "del"
                target: dict[str, Any] = {"dst": str(prefix)}
                if hops:
                    target["multipath"] = multipath
                if version == 6 and hops:  # noqa: PLR2004 - "replace" would change one hop
                    with contextlib.suppress(Exception):
                        route.route("del", dst=str(prefix), family=socket.AF_INET6)
                    verb = "add"
                route.route(verb, **target)

    def __enter__(self) -> Self:
        """Return itself; it is taken down when the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take it down."""
        self.down()

    def _open(self, plan: NodePlan | None) -> Node:
        name = plan.name if plan else self.topology.routers[0].name
        self.nodes[name] = Node(self.topology.name, name, plan)
        return self.nodes[name]

    def _names(self) -> list[str]:
        """Of all its namespaces."""
        names = [each.name for each in self.topology.routers]
        names += [node.name for node in self.topology.nodes]
        return [f"{PREFIX}{self.topology.name}-{name}" for name in names]

    def _claim(self) -> None:
        """Take its name: whoever has the directory has the lab. Nothing else is made yet."""
        name = self.topology.name
        if not (self.directory / _PLAN).exists():
            for namespace in self._names():
                namespaces.refuse_if_there(namespace)
        RUNTIME.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=RUNTIME))
        try:
            plan = self.topology.model_dump_json(exclude_unset=True)
            (new / _PLAN).write_text(plan, encoding="utf-8")
            (new / _MARK).write_text(os.environ.get(RUN_VARIABLE, ""), encoding="ascii")
            new.chmod(0o755)
            new.rename(self.directory)
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            if not (self.directory / _PLAN).exists():
                raise StateError(
                    f"{self.directory} is there, and is no lab's", hint="remove it, or rename it"
                ) from None
            raise StateError(
                f"lab {name} is up already",
                hint=f"sockway lab down {name}, or give this one another name",
            ) from None

    def _build(self) -> None:
        routers = [each.name for each in self.topology.routers]
        for name in self._names():
            namespaces.create(name, self._made)
        for uplink in (None, *self.topology.uplinks):
            router = self._open(uplink)
            router.run(interfaces.settle_router)
            if uplink:
                self._join(self.node(uplink.router), router, uplink)
        for node in self.topology.nodes:
            self._join(self.node(node.router), self._open(node), node)
        for name in routers:
            downward = routing.downward(self.topology, name)
            self.node(name).run(lambda: interfaces.add_routes(downward))  # noqa: B023 - run at once
        if self.of("balancer"):
            self.route_vips([node.name for node in self.of("balancer")])

    def _join(self, router: Node, node: Node, plan: NodePlan) -> None:
        """A pair between the router and a host, with addresses and routes."""

        def at_the_router() -> None:
            with interfaces.netlink() as route:
                route.link(
                    "add", ifname=plan.name, kind="veth",
                    peer={"ifname": LINK, "net_ns_fd": node.netns.fd},
                )  # fmt: skip
                index = route.link_lookup(ifname=plan.name)[0]
                interfaces.settle_link(route, index, plan.router4, plan.router6, plan.mtu)
            interfaces.switch_off(plan.name)
            if plan.role in {"balancer", "backend"}:
                interfaces.take_xdp_frames(index)

        def at_the_host() -> None:
            with interfaces.netlink() as route:
                index = route.link_lookup(ifname=LINK)[0]
                interfaces.settle_link(route, index, plan.address4, plan.address6, plan.mtu)
                route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
                route.route("add", dst="default", gateway=plan.router4)
                route.route("add", dst="::/0", gateway=plan.router6, family=socket.AF_INET6)
            interfaces.switch_off(LINK)
            interfaces.write("net/ipv4/conf/all/rp_filter", "0")
            interfaces.write(f"net/ipv4/conf/{LINK}/rp_filter", "0")

        node.run(interfaces.settle_host)
        router.run(at_the_router)
        node.run(at_the_host)


def _forget() -> None:
    """Remove what is pinned of the current network namespace, which is about to go."""
    pinned = directory_of("any").parent
    shutil.rmtree(pinned, ignore_errors=True)
    for journal in runtime_directory().glob(f"backend-{pinned.name}-*"):
        journal.unlink(missing_ok=True)


def names() -> list[str]:
    """Labs that are up, by the directories that they left."""
    return sorted(entry.name for entry in RUNTIME.glob("[!.]*") if entry.is_dir())


def remove_of_run(mark: str) -> None:
    """Take down all labs that were built with this mark in the environment."""
    for name in names():
        with contextlib.suppress(OSError, SockwayError):
            if (RUNTIME / name / _MARK).read_text(encoding="ascii") == mark:
                Lab.existing(name).down()


def _end(processes: Sequence[int], patience: float) -> None:
    """End processes: asked first, then made to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience
        while processes and time.monotonic() < deadline:
            for pid in processes:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            processes = [pid for pid in processes if _is_alive(pid)]
            if processes:
                time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2]
    except OSError:
        return False


__all__ = ["LINK", "Lab", "Node", "names", "remove_of_run"]
