"""Checks in a network: each kind, in each tunnel, for both kinds of VIPs, reaches its backend."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pyroute2 import IPRoute

from sockway.balancer.health.checks import CheckError, check
from sockway.balancer.health.monitor import HealthMonitor
from sockway.balancer.health.spec import HealthSpec
from sockway.balancer.health.tunnel import CheckTunnel, source_of
from sockway.balancer.health.tunnel import Path as Way
from sockway.balancer.nexthop import ways_out
from sockway.balancer.spec import BalancerSpec, PoolSpec
from sockway.errors import FeatureError, KernelError
from sockway.kernel import Link, Program, clsact
from sockway.lab.fleet import HTTP, HTTP3, POOL, VIPS, Fleet
from tests.lab.fleets import fleet_up

pytestmark = pytest.mark.root
T = TypeVar("T")

MARK = 0x1234
BACKENDS = ["backend1", "backend2"]
FAST = {"type": "http", "interval": 0.1, "timeout": 0.5, "rise": 2, "fall": 2}
TOPOLOGY = {"backends": len(BACKENDS), "balancers": 1, "clients": 1}


@pytest.fixture(autouse=True)
def places(bpffs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins and notes of the test go where the test's own are."""
    del bpffs_root
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path / "run"))


def paths_of(fleet: Fleet, **pool: Any) -> list[Way]:
    """To all backends, numbered from 1; call it inside the balancer's host."""
    spec = PoolSpec.model_validate({"encapsulation": fleet.encapsulation, "backends": {}} | pool)
    addresses = []
    for name in BACKENDS:
        plan = fleet.lab.node(name).plan
        assert plan
        addresses.append(ip_address(plan.address4 if fleet.tunnel == 4 else plan.address6))
    found = ways_out(addresses)
    paths = []
    for number, address in enumerate(addresses, start=1):
        way = found[address]
        assert way is not None
        source = source_of(spec, address, way)
        assert source
        paths.append(Way(number, way.interface, way, address, spec, source))
    return paths


def ask(tunnel: CheckTunnel, way: Way, vip: str, **fields: Any) -> None:
    """One check; call it inside the balancer's host."""
    spec = HealthSpec.model_validate({"timeout": 2} | fields)
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    kind = socket.SOCK_STREAM if spec.protocol == "tcp" else socket.SOCK_DGRAM
    port = HTTP3 if spec.type == "quic" else HTTP
    sock = tunnel.socket(way, family, kind)
    asyncio.run(check(spec, sock, (vip, port)))


def with_tunnel(fleet: Fleet, work: Callable[[CheckTunnel, list[Way]], T], **pool: Any) -> T:
    """Do something in the balancer's host, with paths to all backends."""

    def inside() -> T:
        tunnel = CheckTunnel.open(MARK)
        try:
            paths = paths_of(fleet, **pool)
            tunnel.lead(paths)
            return work(tunnel, paths)
        finally:
            tunnel.close()

    return fleet.lab.node("balancer1").run(inside)


@pytest.mark.parametrize("encapsulation", ["ip", "gue"])
@pytest.mark.parametrize("tunnel", [4, 6])
def test_each_check_reaches_the_backend_that_is_meant(encapsulation: str, tunnel: int) -> None:
    """To IPv4 and IPv6 VIPs, whichever the tunnel is; with requests of any length."""
    with fleet_up({"encapsulation": encapsulation, "tunnel": tunnel}, **TOPOLOGY) as fleet:

        def trial(checks: CheckTunnel, paths: list[Way]) -> None:
            for vip, (name, path) in product(VIPS, zip(BACKENDS, paths, strict=True)):
                for _ in range(5):
                    ask(checks, path, vip, type="tcp")
                    ask(checks, path, vip, type="http", expect=f"^{name}$")
                    ask(checks, path, vip, type="udp", send="who", expect=f"^{name} who$")
                ask(checks, path, vip, type="quic")
                # From one segment that is just full to many at once.
                for length in (*range(1280, 1500, 4), 5000, 30_000):
                    ask(checks, path, vip, type="http", path="/" + "x" * length)
            assert checks.counters()["sent"] > 0
            assert checks.counters()["refused"] == 0

        with_tunnel(fleet, trial)


def test_checks_by_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before 6.6 have no links for tc: it is a filter there, which closing takes off."""

    def refuse(_self: Program, _ifindex: int, *, incoming: bool = True) -> Link:
        raise FeatureError(f"no links, incoming or not: {incoming}")

    monkeypatch.setattr(Program, "attach_tcx", refuse)
    with fleet_up({"http3": False}, **TOPOLOGY) as fleet:

        def trial(checks: CheckTunnel, paths: list[Way]) -> list[int]:
            for name, path in zip(BACKENDS, paths, strict=True):
                ask(checks, path, VIPS[0], type="http", expect=f"^{name}$")
            interfaces = list({path.way.ifindex for path in paths})
            assert all(has_filter(index) for index in interfaces)
            return interfaces

        def has_filter(index: int) -> bool:
            return clsact.is_attached(index, "sockway-checks-main", incoming=False)

        interfaces = with_tunnel(fleet, trial)
        node = fleet.lab.node("balancer1")
        assert not node.run(lambda: any(has_filter(index) for index in interfaces))


def test_packets_without_the_mark_and_without_a_path() -> None:
    """The ones go their way, the others nowhere: what is meant for one backend must not stray."""
    with fleet_up({"http3": False}, **TOPOLOGY) as fleet:

        def trial(checks: CheckTunnel, paths: list[Way]) -> None:
            stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            spec = HealthSpec(type="udp", send="who", expect="^backend", timeout=2)
            # By the balancer itself, for the router sends it back there.
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, (MARK - 1) << 16 | 1)
            asyncio.run(check(spec, stranger, (VIPS[0], HTTP)))
            assert checks.counters() == {"sent": 0, "refused": 0}
            checks.lead(paths[:1])
            ask(checks, paths[0], VIPS[0], type="udp", send="who", expect="^backend1")
            with pytest.raises(CheckError, match="no answer"):
                ask(checks, paths[1], VIPS[0], type="udp", send="who", timeout=0.3)
            assert checks.counters() == {"sent": 1, "refused": 1}

        with_tunnel(fleet, trial)


def test_an_interface_that_is_made_anew() -> None:
    """It has the old one's name; checks go through the tunnel there too."""
    with fleet_up({"http3": False}, **TOPOLOGY) as fleet:

        def trial(checks: CheckTunnel, paths: list[Way]) -> None:
            with IPRoute() as route:
                for count in (1, 2):
                    index = _veth(route, "other")
                    way = replace(paths[0].way, ifindex=index, interface="other")
                    path = replace(paths[0], interface="other", way=way)
                    checks.lead([path])
                    with pytest.raises(CheckError, match="no answer"):
                        ask(checks, path, VIPS[0], type="udp", send="who", timeout=0.1)
                    assert checks.counters() == {"sent": count, "refused": 0}
                    route.link("del", index=index)
            checks.lead([])
            with pytest.raises(KernelError):
                checks.lead([path])
            checks.lead(paths)
            ask(checks, paths[0], VIPS[0], type="http", expect="^backend1$")

        with_tunnel(fleet, trial)


def test_numbers_stay_while_checks_come_and_go() -> None:
    """A check that is under way goes on to its own backend, whoever else leaves the pool."""
    with fleet_up({"http3": False, "health": FAST}, **TOPOLOGY) as fleet:
        spec = fleet.spec(fleet.members.items())
        fewer = fleet.spec([("backend2", 100)])
        unchecked = fewer.model_copy(update={"pool": {POOL: _without_health(fewer)}})
        node = fleet.lab.node("balancer1")
        said: list[dict[str, Any]] = []
        changes: list[dict[str, str]] = []

        async def trial() -> None:
            backends = spec.pool[POOL].backends.values()
            ways = await asyncio.to_thread(node.run, lambda: ways_out(b.address for b in backends))
            monitor = HealthMonitor(lambda failing: changes.append(dict(failing)), said.append)
            try:
                monitor.follow(spec, ways, {})
                await _until(lambda: _steps(said).count("backend_is_up") == len(BACKENDS))
                monitor.follow(fewer, ways, {})
                for process in fleet.lab.node("backend1").processes:
                    os.kill(process, signal.SIGKILL)
                await asyncio.sleep(1)
                assert _steps(said) == ["backend_is_up"] * len(BACKENDS)
                monitor.follow(spec, ways, {})
                await _until(lambda: changes == [{"backend1": "move"}])
                report = {each["name"]: each for each in monitor.report()[POOL]}
                assert report["backend1"]["reason"]
                assert not report["backend1"]["kept"]
                assert report["backend2"]["up"]
                # One of one is half of nothing: it is kept.
                monitor.follow(fleet.spec([("backend1", 100)]), ways, {"backend1": "move"})
                await _until(lambda: changes[-1] == {})
                assert [each["kept"] for each in monitor.report()[POOL]] == [True]
                monitor.follow(unchecked, ways, {})
                assert monitor.report() == {}
            finally:
                await monitor.close()

        node.run(lambda: asyncio.run(trial()))


def _veth(route: IPRoute, name: str) -> int:
    """One end of a pair, whose other end throws all away; the VIP seems to be there."""
    route.link("add", ifname=name, kind="veth", peer={"ifname": "peer"})
    for end in ("peer", name):
        index = int(route.link_lookup(ifname=end)[0])
        route.link("set", index=index, state="up")
    route.neigh("add", dst=VIPS[0], lladdr="02:00:00:00:00:01", ifindex=index, state="permanent")
    return index


def _without_health(spec: BalancerSpec) -> PoolSpec:
    return spec.pool[POOL].model_copy(update={"health": None})


def _steps(said: list[dict[str, Any]]) -> list[str]:
    return [each["step"] for each in said]


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what it waits for tells nobody
            await asyncio.sleep(0.02)
