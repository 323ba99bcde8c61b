"""Clients, a router, two balancers, backends: real kernels and servers, changed under them."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockway.balancer.diagnosis import diagnose
from sockway.balancer.host import Host
from sockway.lab.fleet import HTTP, POOL, VIPS, Fleet
from sockway.lab.lasting import LastingConnections
from tests.lab.fleets import agent_of, ask, ask_http3, balancer, fleet_up, toml_of, transfer

pytestmark = pytest.mark.root

TARGETS = [(vip, HTTP) for vip in VIPS]
MEGABYTE = 1_000_000


@pytest.fixture(autouse=True)
def places(bpffs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins and notes of the test go where the test's own are."""
    del bpffs_root
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path / "run"))


@contextlib.contextmanager
def connections(fleet: Fleet, count: int = 200) -> Iterator[LastingConnections]:
    """Connections of all clients to both VIPs."""
    with LastingConnections.open(fleet.lab.of("client"), TARGETS, count) as opened:
        yield opened


@pytest.mark.parametrize("encapsulation", ["ip", "gue"])
@pytest.mark.parametrize("tunnel", [4, 6])
def test_clients_reach_all_backends(encapsulation: str, tunnel: int) -> None:
    """TCP, UDP and HTTP/3, both families, full-size segments in both directions."""
    with fleet_up({"encapsulation": encapsulation, "tunnel": tunnel}) as fleet:
        names = {node.name for node in fleet.lab.of("backend")}
        client = fleet.lab.node("client1")
        for vip in VIPS:
            assert set(ask(client, vip, 30, socket.SOCK_STREAM)) == names
            assert set(ask(client, vip, 30, socket.SOCK_DGRAM)) == names
            assert ask_http3(client, vip) in names
            assert transfer(client, vip, MEGABYTE) == (MEGABYTE, MEGABYTE // 10 + 10)
        sent = [balancer(node, "counters") for node in fleet.lab.of("balancer")]
        assert all(counters.sent > 100 for counters in sent)  # both have their share
        assert not any(counters.dropped for counters in sent)


@pytest.mark.parametrize("encapsulation", ["ip", "gue"])
def test_jumbo_frames(encapsulation: str) -> None:
    """Frames of several buffers, in the driver: no interface falls back to generic mode."""
    settings = {"encapsulation": encapsulation, "settings": {"mode": "native"}, "open_by": "native"}
    topology = {"mtu": 8900, "tunnel_mtu": 9000, "clients": 1, "backends": 1, "balancers": 1}
    with fleet_up(settings | {"http3": False}, **topology) as fleet:
        client, backend = fleet.lab.node("client1"), fleet.lab.node("backend1")
        for vip in VIPS:
            assert ask(client, vip, 5, socket.SOCK_STREAM) == {"backend1": 5}
            assert ask(client, vip, 5, socket.SOCK_DGRAM) == {"backend1": 5}
            assert transfer(client, vip, 10 * MEGABYTE) == (10 * MEGABYTE, MEGABYTE + 10)
        counters = backend.run(lambda: Host.existing().counters())
        octets = balancer(fleet.lab.node("balancer1"), "counters")
        assert counters["decap_failed"] == 0
        assert not octets.dropped
        # A megabyte of uploads in frames of 8,900 octets, and not of 1,500.
        assert counters["decapsulated"] < 2000


def test_behind_the_driver() -> None:
    """XDP in generic mode, on balancers and backends: for any network card."""
    settings = {"settings": {"mode": "generic"}, "open_by": "generic", "http3": False}
    with fleet_up(settings) as fleet:
        for vip in VIPS:
            assert len(ask(fleet.lab.node("client1"), vip, 30, socket.SOCK_STREAM)) == 3
            assert len(ask(fleet.lab.node("client2"), vip, 30, socket.SOCK_DGRAM)) == 3
            done = transfer(fleet.lab.node("client1"), vip, MEGABYTE)
            assert done == (MEGABYTE, MEGABYTE // 10 + 10)
        found = fleet.lab.node("balancer1").run(diagnose)
        assert [f.name for f in found if not f.ok] == ["balancer main: XDP mode"]


@pytest.mark.parametrize("encapsulation", ["ip", "gue"])
@pytest.mark.parametrize("tunnel", [4, 6])
def test_tunnels_opened_by_tc(encapsulation: str, tunnel: int) -> None:
    """Where XDP can't be: all tunnels, both families, full-size segments in both directions."""
    settings = {"encapsulation": encapsulation, "tunnel": tunnel, "open_by": "tc", "http3": False}
    with fleet_up(settings, balancers=1, backends=1) as fleet:
        client, node = fleet.lab.node("client1"), fleet.lab.node("backend1")
        for vip in VIPS:
            assert ask(client, vip, 5, socket.SOCK_STREAM) == {"backend1": 5}
            assert ask(client, vip, 5, socket.SOCK_DGRAM) == {"backend1": 5}
            assert transfer(client, vip, MEGABYTE) == (MEGABYTE, MEGABYTE // 10 + 10)
        counters = node.run(lambda: Host.existing().counters())
        assert counters["decapsulated"] > 100
        assert counters["decap_failed"] == 0


def test_backends_come_and_go_and_no_connection_breaks() -> None:
    """Added, drained, restored, weighted, removed: who has a backend keeps it."""
    with fleet_up({"http3": False}, backends=4) as fleet, connections(fleet) as lasting:
        before = lasting.owners()
        assert len(before) == 4
        balancers = fleet.lab.of("balancer")
        for node in balancers:
            balancer(node, "set_drained", "backend1")
        assert lasting.ask() == {"alive": 200}
        answers = ask(fleet.lab.node("client1"), VIPS[0], 60, socket.SOCK_STREAM)
        assert answers["backend1"] == 0
        assert sum(answers.values()) == 60
        for node in balancers:
            balancer(node, "restore", "backend1")
        del fleet.members["backend2"]  # its host goes on: connections that it has stay
        fleet.apply()
        assert lasting.ask() == {"alive": 200}
        assert ask(fleet.lab.node("client1"), VIPS[0], 60, socket.SOCK_STREAM)["backend2"] == 0
        fleet.members["backend2"] = 10
        fleet.apply()
        for node in balancers:
            balancer(node, "set_weight", POOL, "backend3", 900)
        assert lasting.ask() == {"alive": 200}
        assert lasting.owners() == before
        shares = {s.name: s.share for s in balancer(balancers[0], "status")[POOL]}
        assert shares["backend3"] > 0.7
        assert shares["backend2"] < 0.02


def test_a_dead_backend_costs_its_own_connections_only() -> None:
    """Those of others stay, and new ones go elsewhere at once."""
    with fleet_up({"http3": False}) as fleet, connections(fleet) as lasting:
        owned = lasting.owners()
        fleet.kill(fleet.lab.node("backend2"))
        for node in fleet.lab.of("balancer"):
            balancer(node, "set_down", "backend2")
        fates = lasting.ask()
        assert fates["alive"] == 200 - owned["backend2"]
        answers = ask(fleet.lab.node("client2"), VIPS[1], 40, socket.SOCK_STREAM)
        assert set(answers) == {"backend1", "backend3"}


def test_a_balancer_dies_and_nobody_notices() -> None:
    """The router shifts its flows to the other one, whose rings are the same."""
    with fleet_up({"http3": False}) as fleet, connections(fleet) as lasting:
        owners = lasting.owners()
        fleet.kill(fleet.lab.node("balancer1"))
        fleet.lab.route_vips(["balancer2"])
        assert lasting.ask() == {"alive": 200}
        assert lasting.owners() == owners


@pytest.mark.parametrize(("stamps", "whole"), [(True, True), (False, False)])
def test_stamped_connections_need_no_memory(*, stamps: bool, whole: bool) -> None:
    """No table, no history: backends and balancers change, and nobody notices who carries an ID."""
    settings = {"http3": False, "stamps": stamps, "settings": {"memory": "none"}}
    with fleet_up(settings, backends=6) as fleet, fleet.as_client(), connections(fleet) as lasting:
        owners = lasting.owners()
        for gone, balancers in (("backend1", ["balancer2"]), ("backend4", ["balancer1"])):
            del fleet.members[gone]  # its host goes on
            fleet.apply()
            fleet.lab.route_vips(balancers)
            lasting.ask()
        fleet.members |= {"backend1": 100, "backend4": 300}
        fleet.apply()
        fates = lasting.ask()
        assert (fates == {"alive": 200}) is whole
        if whole:
            assert lasting.owners() == owners
            counters = [balancer(node, "counters") for node in fleet.lab.of("balancer")]
            by = [o for c in counters for name, o in c.outcomes.items() if name.startswith("tcp")]
            assert sum(o.get("by_stamp", 0) for o in by) > 600
            assert not any(o.get("stored", 0) + o.get("by_table", 0) for o in by)


def test_the_agent_dies_is_replaced_and_the_program_renewed(tmp_path: Path) -> None:
    """Forwarding goes on without it; the next one adopts what is there, and loses no datagram."""
    with fleet_up({"http3": False}, balancers=1) as fleet, connections(fleet) as lasting:
        node = fleet.lab.node("balancer1")
        file = tmp_path / "balancer.toml"
        file.write_text(toml_of(fleet), encoding="utf-8")
        agent = agent_of(node, file)
        agent.kill()
        agent.communicate()
        assert lasting.ask() == {"alive": 200}
        before = balancer(node, "counters")
        agent = agent_of(node, file)
        flows = LastingConnections.open(fleet.lab.of("client"), TARGETS, 100, socket.SOCK_DGRAM)
        with flows:
            # Another memory is another program: it is loaded and takes the place of the old one.
            file.write_text(toml_of(fleet, 'memory = "table"'), encoding="utf-8")
            agent.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 20
            while balancer(node, "__getattribute__", "spec").memory != "table":
                assert flows.ask(1) == {"alive": 100}  # one that is lost is silent
                assert time.monotonic() < deadline
            assert flows.ask(1) == {"alive": 100}
        assert lasting.ask() == {"alive": 200}
        after = balancer(node, "counters")
        assert after.sent > before.sent > 0  # counted on
        agent.terminate()
        said, _ = agent.communicate(timeout=10)
        assert agent.returncode == 0
        assert "goes on" in said
        assert lasting.ask() == {"alive": 200}


@pytest.mark.parametrize("vip", VIPS)
def test_packets_that_fill_the_path_are_told_the_tunnels_mtu(vip: str) -> None:
    """Without room for the tunnel's headers clients get the ICMP that makes them send less."""
    with fleet_up({"http3": False}, tunnel_mtu=1500) as fleet:
        client = fleet.lab.node("client1")
        assert transfer(client, vip, MEGABYTE) == (MEGABYTE, MEGABYTE // 10 + 10)
        counters = [balancer(node, "counters") for node in fleet.lab.of("balancer")]
        told = sum(o.get("too_big", 0) for c in counters for o in c.outcomes.values())
        assert told > 0
        assert not any(c.dropped for c in counters)


def test_datagrams_up_to_the_mtu_arrive_and_fragments_are_counted() -> None:
    """1,472 octets of UDP fill an IPv4 packet of 1,500; one more is two fragments."""
    with fleet_up({"http3": False}) as fleet:
        client = fleet.lab.node("client1")

        def send(octets: int) -> int:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.5)
                sock.connect((VIPS[0], HTTP))
                sock.send(b"y" * octets)
                try:
                    return len(sock.recv(4000))
                except TimeoutError:
                    return 0

        name = len("backend1 ")

        def send_again(octets: int) -> int:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.5)
                sock.connect((VIPS[0], HTTP))
                sock.send(b"y" * octets)
                with pytest.raises(TimeoutError):
                    sock.recv(4000)
                sock.send(b"y" * octets)
                return len(sock.recv(4000))

        assert client.run(lambda: send(1400)) == 1400 + name
        # The first answer is too large for the client's link. The router says so to the VIP, and
        # the balancer hands that to the backend whose answer it was; the second gets through.
        with_its_port = client.run(lambda: send_again(1472))
        assert with_its_port == 1472 + name
        assert client.run(lambda: send(1473)) == 0
        counters = [balancer(node, "counters") for node in fleet.lab.of("balancer")]
        assert sum(o.get("fragment", 0) for c in counters for o in c.outcomes.values()) == 2
