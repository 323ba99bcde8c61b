"""QUIC from end to end: client, router, balancer, backend, and there the worker whose it is.

Servers are supervised aioquic, two workers each; their connection IDs name server, generation and
worker. Balancers keep nothing.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sockway.lab import resets_quic
from sockway.lab.fleet import HTTP3, VIPS, Fleet
from sockway.lab.lasting_quic import LastingQuics
from sockway.lab.supervised import SERVICE
from sockway.sockets.service import Service
from sockway.wire.quic_lb import QuicLb, QuicLbConfig
from tests.lab.fleets import balancer, fleet_up

pytestmark = pytest.mark.root

TARGETS = [(vip, HTTP3) for vip in VIPS]
KEY = "8f95f09245765f80256934e50c66207f"
CLEAR = [
    {"rotation": 0, "server_id_length": 3, "nonce_length": 4},
    {"rotation": 3, "server_id_length": 1, "nonce_length": 9},
    {"rotation": 6, "server_id_length": 6, "nonce_length": 4},
]
ENCRYPTED = [
    {"rotation": 1, "server_id_length": 3, "nonce_length": 7, "key": KEY},
    {"rotation": 2, "server_id_length": 2, "nonce_length": 7, "key": KEY[::-1]},
    {"rotation": 5, "server_id_length": 1, "nonce_length": 8, "key": KEY},
]


@pytest.fixture(autouse=True)
def places(bpffs_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pins and notes of the test go where the test's own are."""
    del bpffs_root
    with tempfile.TemporaryDirectory(prefix="sw-") as directory:
        monkeypatch.setenv("SOCKWAY_RUNTIME", directory)
        yield


def release(fleet: Fleet, ids: dict[str, dict[str, Any]]) -> None:
    """New generations on these backends, all at once, that mint by these configurations."""
    with ThreadPoolExecutor() as pool:
        services = fleet.http3_services
        done = [pool.submit(services[name].release, ids[name]) for name in ids]
        assert all(each.result() >= 2 for each in done)


def server_ids(fleet: Fleet, lasting: LastingQuics) -> dict[int, set[str]]:
    """Whose IDs the live connections have, by rotation, after a look at all of them."""
    found: dict[int, set[str]] = {}
    for each in lasting.alive:
        rotation = each.connection_id[0] >> 5
        ids = next(ids for ids in fleet.quic_ids if ids["rotation"] == rotation)
        key = bytes.fromhex(ids["key"]) if "key" in ids else None
        config = QuicLbConfig(rotation, ids["server_id_length"], ids["nonce_length"], key=key)
        name = each.owner.split()[0].decode()
        number = QuicLb(config).decode(each.connection_id)
        assert number is not None
        assert int.from_bytes(number, "big") == fleet.server_id(name)
        found.setdefault(rotation, set()).add(name)
    return found


def decided() -> Counter[str]:
    """What the host's router has decided for all VIPs, and how often."""
    with Service.attach(SERVICE) as service:
        return sum(map(Counter, service.counters().decisions.values()), Counter())


def change_the_fleet(fleet: Fleet) -> None:
    """A backend gets no new connections, another has more; a balancer dies, a new one comes."""
    one, other = fleet.lab.of("balancer")
    fleet.members["backend3"] = 0
    fleet.apply()
    fleet.lab.route_vips([one.name])
    fleet.lose(other)
    fleet.members |= {"backend1": 20, "backend2": 300}
    fleet.apply()
    fleet.replace(other)
    fleet.lab.route_vips([other.name])


@pytest.mark.parametrize("ids", [CLEAR, ENCRYPTED], ids=["clear", "encrypted"])
def test_every_packet_finds_its_worker(ids: list[dict[str, Any]]) -> None:
    """Releases, three configurations of IDs at once, another fleet, other addresses: none lost."""
    settings = {"quic_ids": ids, "settings": {"memory": "none"}}
    with fleet_up(settings, backends=3) as fleet, LastingQuics() as lasting:
        clients = fleet.lab.of("client")
        lasting.open(clients, TARGETS, 16)
        release(fleet, {"backend1": ids[1], "backend2": ids[2]})
        lasting.open(clients, TARGETS, 32)
        assert set(server_ids(fleet, lasting)) == {each["rotation"] for each in ids}
        owners = {each.owner for each in lasting.members}
        assert {owner.split()[1] for owner in owners} == {b"1", b"2"}
        assert {owner.split()[2] for owner in owners} == {b"0", b"1"}
        assert lasting.ask() == {"alive": 48}
        change_the_fleet(fleet)
        assert lasting.ask() == {"alive": 48}
        ports = [each.port for each in lasting.members]
        lasting.rebind()
        assert lasting.ask() == {"alive": 48}
        # Each by itself: hosts give out ports without regard to each other's.
        assert all(each.port != port for each, port in zip(lasting.members, ports, strict=True))
        before = {each.connection_id for each in lasting.members}
        lasting.change_ids()
        assert lasting.ask() == {"alive": 48}
        assert not before & {each.connection_id for each in lasting.members}
        server_ids(fleet, lasting)  # the further IDs are as the first ones
        for node in fleet.lab.of("balancer"):
            outcomes = balancer(node, "counters").outcomes
            by = [o for name, o in outcomes.items() if name.startswith("udp") and "443" in name]
            assert sum(o.get("by_stamp", 0) for o in by) > 50
        for node in fleet.lab.of("backend"):
            decisions = node.run(decided)
            assert decisions["owner_by_id"] > 10
            # By the table: a first packet that is sent again.
            assert decisions.keys() <= {"owner_by_id", "owner_by_table", "new_flow", "flow_stored"}


@pytest.mark.parametrize(
    "ids", [ENCRYPTED[:2], [CLEAR[0], ENCRYPTED[0]]], ids=["another key", "in clear, then not"]
)
def test_ids_of_another_configuration_take_over(ids: list[dict[str, Any]]) -> None:
    """Balancers learn the new one, servers mint by it, the old one goes with its connections."""
    old, new = ids
    with (
        fleet_up({"quic_ids": [old], "settings": {"memory": "none"}}, backends=3) as fleet,
        LastingQuics() as lasting,
    ):
        clients = fleet.lab.of("client")
        lasting.open(clients, TARGETS, 16)
        assert set(server_ids(fleet, lasting)) == {old["rotation"]}

        fleet.quic_ids = [old, new]  # balancers first
        fleet.apply()
        assert lasting.ask() == {"alive": 16}
        release(fleet, {"backend1": new})
        lasting.open(clients, TARGETS, 12)  # some mint by the one, some by the other
        release(fleet, {"backend2": new, "backend3": new})
        lasting.open(clients, TARGETS, 12)
        assert len(server_ids(fleet, lasting)[new["rotation"]]) > 1
        lasting.rebind()
        assert lasting.ask() == {"alive": 40}
        change_the_fleet(fleet)
        lasting.change_ids()
        assert lasting.ask() == {"alive": 40}
        assert set(server_ids(fleet, lasting)) == {old["rotation"], new["rotation"]}

        # The last connection of the old one's time ends; only then it is taken out.
        lasting.end([e for e in lasting.alive if e.connection_id[0] >> 5 == old["rotation"]])
        remaining = len(lasting.alive)
        assert remaining >= 12
        fleet.quic_ids = [new]
        fleet.apply()
        lasting.open(clients, TARGETS, 8)
        lasting.rebind()
        assert lasting.ask() == {"alive": remaining + 8}
        lasting.change_ids()
        assert lasting.ask() == {"alive": remaining + 8}
        assert set(server_ids(fleet, lasting)) == {new["rotation"]}

        fleet.quic_ids = [old]  # what the order is for: this one has connections
        fleet.apply()
        lasting.rebind()
        assert lasting.ask(1.5)["alive"] < remaining + 8


def test_without_reading_ids_connections_are_lost() -> None:
    """The same IDs, addresses and changes, for balancers that don't look at the IDs."""
    settings = {"quic_ids": CLEAR, "read_quic_ids": False, "settings": {"memory": "none"}}
    with fleet_up(settings, backends=3) as fleet, LastingQuics() as lasting:
        clients = fleet.lab.of("client")
        lasting.open(clients, TARGETS, 24)
        assert lasting.ask() == {"alive": 24}
        lasting.rebind()
        alive = lasting.ask(1.5)["alive"]
        assert 0 < alive < 24
        lasting.open(clients, TARGETS, 24)
        change_the_fleet(fleet)
        assert 0 < lasting.ask(1.5)["alive"] < alive + 24


def test_the_experiment_finds_what_breaks_by_what_changed() -> None:
    """Its course under stamps breaks none; counts go to the kind of change that they followed."""
    seen: list[int] = []
    plan = resets_quic.Plan(connections=12, changes=len(resets_quic.KINDS))
    course = resets_quic.run("stamps", plan, lambda course: seen.append(course.total))
    assert (course.broken, course.opened, seen) == ([0] * 4, 12, [0] * 4)
    ring = resets_quic.Course(plan, broken=[0, 3, 2, 0, 1, 4], opened=20)
    assert ring.by_kind() == [1, 7, 2, 0]
    told = resets_quic.sentence({"ring": ring, "stamps": course})
    assert "50.0% of 20 with ring only, none of 12 with connection IDs" in told
