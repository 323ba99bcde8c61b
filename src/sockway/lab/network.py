"""A topology as network namespaces that are joined by veth pairs.

All state is in the kernel, under names that say whose it is (`sockway-<lab>-<node>`), so that
`Lab.existing` finds a lab again and `down` takes away what any process left, a killed one too.
Nothing outside of these namespaces is touched: the pairs are made inside them.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from sockway.balancer.host import runtime_directory
from sockway.balancer.state import directory_of
from sockway.errors import NotFoundError, StateError
from sockway.kernel import BpfObject, Netns, XdpMode
from sockway.lab import routing
from sockway.lab.stamped import forget as forget_stamps
from sockway.lab.topology import LINK, NodePlan, Topology

T = TypeVar("T")

PREFIX: Final = "sockway-"
NAMESPACES: Final = Path("/run/netns")
RUNTIME: Final = Path("/run/sockway-lab")
RUN_VARIABLE: Final = "SOCKWAY_LAB_RUN"
"""Environment variable: a mark for labs of one run of experiments, so that they are found again."""
_MARK: Final = "run"
_PLAN: Final = "topology.json"
_SIOCETHTOOL: Final = 0x8946
_OFFLOADS: Final = {"tx checksums": 0x17, "GRO": 0x2C, "TSO": 0x1F, "GSO": 0x24}
"""ETHTOOL_STXCSUM, ETHTOOL_SGRO, ETHTOOL_STSO, ETHTOOL_SGSO of <linux/ethtool.h>."""


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
            with _route() as route:
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

    @classmethod
    def up(cls, topology: Topology) -> Self:
        """Build the network.

        Raises:
            ConfigError: there can't be such a network.
            StateError: a lab of this name is there already.
            KernelError: a step failed; nothing is left of it.

        """
        topology.check()
        if (RUNTIME / topology.name / _PLAN).exists():
            raise StateError(
                f"lab {topology.name} is up already",
                hint=f"sockway lab down {topology.name}, or give this one another name",
            )
        lab = cls(topology)
        try:
            lab._build()
        except BaseException:
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
        """End its processes and take its namespaces away; no error if half of it is missing."""
        for node in self.nodes.values():
            _end(node.processes, patience)
            with contextlib.suppress(OSError):
                node.run(_forget)
            node.close()
        self.nodes.clear()
        forget_stamps(self.topology.name)
        for entry in sorted(NAMESPACES.glob(f"{PREFIX}{self.topology.name}-*")):
            _remove(entry)
        shutil.rmtree(self.directory, ignore_errors=True)

    def route_vips(self, balancers: Sequence[str]) -> None:
        """Have routers send VIPs to the nearest of these balancers; others get nothing."""
        plans = [plan for node in self.of("balancer") if (plan := node.plan)]
        chosen = [plan for plan in plans if plan.name in balancers]
        for each in self.topology.routers:
            hops = routing.to_vips(self.topology, each.name, chosen)
            self.node(each.name).run(lambda: self._send_vips(hops))  # noqa: B023 - run at once

    def _send_vips(self, hops: Sequence[routing.Hop]) -> None:
        with _route() as route:
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

    def _build(self) -> None:
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        plan = self.topology.model_dump_json(exclude_unset=True)
        (self.directory / _PLAN).write_text(plan, encoding="utf-8")
        (self.directory / _MARK).write_text(os.environ.get(RUN_VARIABLE, ""), encoding="ascii")
        routers = [each.name for each in self.topology.routers]
        for name in (*routers, *(node.name for node in self.topology.nodes)):
            _create(f"{PREFIX}{self.topology.name}-{name}")
        for uplink in (None, *self.topology.uplinks):
            router = self._open(uplink)
            router.run(_settle_router)
            if uplink:
                self._join(self.node(uplink.router), router, uplink)
        for node in self.topology.nodes:
            self._join(self.node(node.router), self._open(node), node)
        for name in routers:
            downward = routing.downward(self.topology, name)
            self.node(name).run(lambda: _add_routes(downward))  # noqa: B023 - run at once
        if self.of("balancer"):
            self.route_vips([node.name for node in self.of("balancer")])

    def _join(self, router: Node, node: Node, plan: NodePlan) -> None:
        """A pair between the router and a host, with addresses and routes."""

        def at_the_router() -> None:
            with _route() as route:
                route.link(
                    "add", ifname=plan.name, kind="veth",
                    peer={"ifname": LINK, "net_ns_fd": node.netns.fd},
                )  # fmt: skip
                index = route.link_lookup(ifname=plan.name)[0]
                _settle(route, index, plan.router4, plan.router6, plan.mtu)
            _switch_off(plan.name)
            if plan.role in {"balancer", "backend"}:
                _take_xdp_frames(index)

        def at_the_host() -> None:
            with _route() as route:
                index = route.link_lookup(ifname=LINK)[0]
                _settle(route, index, plan.address4, plan.address6, plan.mtu)
                route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
                route.route("add", dst="default", gateway=plan.router4)
                route.route("add", dst="::/0", gateway=plan.router6, family=socket.AF_INET6)
            _switch_off(LINK)
            _write("net/ipv4/conf/all/rp_filter", "0")
            _write(f"net/ipv4/conf/{LINK}/rp_filter", "0")

        node.run(_settle_host)
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
    return sorted(entry.name for entry in RUNTIME.glob("*") if entry.is_dir())


def remove_of_run(mark: str) -> None:
    """Take down all labs that were built with this mark in the environment."""
    for name in names():
        with contextlib.suppress(OSError, NotFoundError):
            if (RUNTIME / name / _MARK).read_text(encoding="ascii") == mark:
                Lab.existing(name).down()


@contextlib.contextmanager
def _route() -> Iterator[Any]:
    # Here, for it takes longer to import than all else together.
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as route:
        yield route


def _create(namespace: str) -> None:
    from pyroute2 import netns  # noqa: PLC0415

    netns.create(namespace)


def _remove(entry: Path) -> None:
    from pyroute2 import netns  # noqa: PLC0415

    with contextlib.suppress(OSError):
        netns.remove(entry.name)


def _settle_host() -> None:
    # Nobody else has its addresses; to look for that takes a second in which nothing gets through.
    _write("net/ipv6/conf/default/accept_dad", "0")


def _settle_router() -> None:
    _settle_host()
    with _route() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
    for path, value in {
        "net/ipv4/ip_forward": "1",
        "net/ipv6/conf/all/forwarding": "1",
        "net/ipv4/fib_multipath_hash_policy": "1",
        "net/ipv6/fib_multipath_hash_policy": "1",
        "net/ipv4/conf/all/rp_filter": "0",
        "net/ipv4/conf/default/rp_filter": "0",
    }.items():
        _write(path, value)


def _settle(route: Any, index: int, address4: str, address6: str, mtu: int) -> None:
    route.link("set", index=index, mtu=mtu)
    route.addr("add", index=index, address=address4, prefixlen=24)
    # Without waiting whether somebody else has it.
    route.addr("add", index=index, address=address6, prefixlen=64, flags=0x02)
    route.link("set", index=index, state="up")


def _add_routes(routes: Sequence[tuple[str, str]]) -> None:
    """Routes to networks by way of gateways."""
    with _route() as route:
        for network, gateway in routes:
            family = socket.AF_INET6 if ":" in network else socket.AF_INET
            route.route("add", dst=network, gateway=gateway, family=family)


def _write(path: str, value: str) -> None:
    Path("/proc/sys", path).write_text(value, encoding="ascii")


def _switch_off(interface: str) -> None:
    """No offloads: a frame that XDP sends has lost what the sender left to the hardware."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in _OFFLOADS.values():
            value = bytearray(struct.pack("II", command, 0))
            held = (ctypes.c_char * len(value)).from_buffer(value)
            request = struct.pack("16sQ8x", interface.encode(), ctypes.addressof(held))
            with contextlib.suppress(OSError):
                fcntl.ioctl(sock, _SIOCETHTOOL, request)


def _take_xdp_frames(index: int) -> None:
    source = resources.files("sockway.kernel").joinpath("objects", "xdp_pass.bpf.o").read_bytes()
    with BpfObject.open(source, name="xdp_pass") as made:
        made.load()
        _attach_for_good(made, index)


def _attach_for_good(made: BpfObject, index: int) -> None:
    """By netlink and not by a link: it lives as long as the interface."""
    with _route() as route, made.program("pass") as program:
        native = int(XdpMode.NATIVE)
        route.link("set", index=index, xdp_fd=program.fd, xdp_flags=native)


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


__all__ = ["LINK", "RUN_VARIABLE", "Lab", "Node", "names", "remove_of_run"]
