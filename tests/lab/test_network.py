"""Networks that are built and taken away again, and their descriptions."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from pyroute2 import netns

from sockway.balancer import Balancer
from sockway.errors import ConfigError, NotFoundError, SockwayError, StateError
from sockway.lab import namespaces
from sockway.lab.fleet import VIPS, Fleet
from sockway.lab.namespaces import NAMESPACES
from sockway.lab.network import RUNTIME, Lab
from sockway.lab.picture import draw
from sockway.lab.routing import to_vips
from sockway.lab.topology import LINK, NodePlan, Topology
from tests.kernel.child import as_nobody
from tests.lab.fleets import ask

needs_root = pytest.mark.root


@pytest.fixture
def name() -> str:
    """A lab's, that nobody else has."""
    return f"n{uuid.uuid4().hex[:6]}"


def traces(name: str) -> list[str]:
    """What there is of a lab."""
    found = [str(entry) for entry in NAMESPACES.glob(f"sockway-{name}-*")]
    return found + [str(entry) for entry in RUNTIME.glob(name)]


@needs_root
@pytest.mark.usefixtures("bpffs_root")
def test_up_and_down(name: str) -> None:
    """Another process finds it; processes in it end with it; nothing is left."""
    with Lab.up(Topology(name=name, clients=1, balancers=0, backends=1)) as lab:
        assert set(lab.nodes) == {"router", "client1", "backend1"}
        with pytest.raises(StateError, match="is up already"):
            Lab.up(lab.topology)
        sleeper = lab.node("backend1").popen(["sleep", "60"])
        seen = Lab.existing(name)
        assert seen.topology == lab.topology
        assert seen.node("backend1").processes == [sleeper.pid]
        with pytest.raises(NotFoundError, match="no node 'backend9'"):
            seen.node("backend9")
        for node in seen.nodes.values():
            node.close()
        assert traces(name)
    assert sleeper.poll() is not None
    assert not traces(name)
    with pytest.raises(NotFoundError):
        Lab.existing(name)


@needs_root
@pytest.mark.usefixtures("bpffs_root")
def test_a_failure_half_way_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last host can't be joined."""
    real = Lab._join

    def refuse(lab: Lab, router: object, node: object, plan: object) -> None:
        if getattr(plan, "role", "") == "backend":
            raise SockwayError("no more")
        real(lab, router, node, plan)  # type: ignore[arg-type]

    monkeypatch.setattr(Lab, "_join", refuse)
    with pytest.raises(SockwayError, match="no more"):
        Lab.up(Topology(name=name, clients=1, balancers=1, backends=1))
    assert not traces(name)


@needs_root
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_is_not_the_labs_stays(
    name: str, when: str, monkeypatch: pytest.MonkeyPatch, bpffs_root: Path
) -> None:
    """A namespace of a name that the lab needs, and others; before it is built and after it."""
    theirs, beside = f"sockway-{name}-router", f"sockway-{name}-mine"
    stamps = bpffs_root / f"@stamp-{name}-mine"
    stamps.mkdir()
    topology = Topology(name=name, clients=1, balancers=0, backends=0)
    try:
        netns.create(beside)
        with Lab.up(topology):
            assert beside in {Path(trace).name for trace in traces(name)}
        assert traces(name) == [str(NAMESPACES / beside)]
        netns.create(theirs)
        if when == "meanwhile":
            monkeypatch.setattr(namespaces, "refuse_if_there", lambda _: None)
        with pytest.raises(StateError, match=f"namespace {theirs}.*ip netns del {theirs}"):
            Lab.up(topology)
        assert {Path(trace).name for trace in traces(name)} == {theirs, beside}
        assert stamps.is_dir()
    finally:
        for space in (theirs, beside):
            if (NAMESPACES / space).exists():
                netns.remove(space)


@needs_root
@pytest.mark.usefixtures("bpffs_root")
def test_only_one_of_two_has_the_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look before either builds: one gets it, and the other takes nothing of it away."""
    topology = Topology(name=name, clients=1, balancers=0, backends=0)
    with Lab.up(topology) as lab:
        monkeypatch.setattr(namespaces, "refuse_if_there", lambda _: None)
        with pytest.raises(StateError, match="is up already"):
            Lab.up(topology)
        assert len(traces(name)) == 3
        assert lab.node("client1").run(os.getpid)
    (RUNTIME / name).mkdir()
    (RUNTIME / name / "log").touch()
    with pytest.raises(StateError, match="is no lab's"):
        Lab.up(topology)
    assert traces(name) == [str(RUNTIME / name)]
    shutil.rmtree(RUNTIME / name)


@needs_root
@pytest.mark.usefixtures("bpffs_root")
def test_nobody_is_told_in_one_line(name: str) -> None:
    """That it takes root, and not that a place could not be looked at afterwards."""
    topology = Topology(name=name, clients=1, balancers=0, backends=0)
    told = as_nobody(lambda: Lab.up(topology))
    assert told.startswith("PermissionDenied: /run/sockway-lab"), told
    assert not traces(name)
    with Lab.up(topology):
        told = as_nobody(lambda: Lab.existing(name).down())
        assert told.startswith("PermissionDenied: "), told
        assert len(traces(name)) == 3


@needs_root
@pytest.mark.usefixtures("bpffs_root")
def test_hosts_reach_each_other(name: str) -> None:
    """Both families, by way of the router."""
    program = """
import socket, sys
with socket.create_server((sys.argv[1], 7), family=int(sys.argv[2])) as server:
    print("ready", flush=True)
    server.accept()[0].sendall(b"hello")
"""
    with Lab.up(Topology(name=name, clients=1, balancers=0, backends=1)) as lab:
        client, backend = lab.node("client1"), lab.node("backend1")
        assert backend.plan
        for address, family in ((backend.plan.address4, 2), (backend.plan.address6, 10)):
            server = backend.popen(
                [sys.executable, "-c", program, address, str(family)],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert server.stdout
            assert server.stdout.readline() == "ready\n"
            code = f"import socket; print(socket.create_connection(({address!r}, 7)).recv(9))"
            done = client.popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            assert "hello" in done.communicate(timeout=10)[0]
            server.communicate(timeout=10)


@needs_root
def test_commands(name: str, tmp_path: Path, bpffs_root: Path) -> None:
    """`sockway lab` in a process of its own, whose end is not the lab's."""
    file = tmp_path / "lab.toml"
    file.write_text(
        f'name = "{name}"\nclients = 1\nbalancers = 1\nbackends = 1\n'
        'vips4 = "198.51.100.0/24"\nvips6 = "2001:db8:9::7/128"\n'
    )
    environment = os.environ | {
        "SOCKWAY_BPFFS": str(bpffs_root), "SOCKWAY_RUNTIME": str(tmp_path / "run"),
    }  # fmt: skip

    def sockway(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sockway", "lab", *arguments],
            env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    try:
        up = sockway("up", str(file), "--encapsulation", "gue", "--tunnel", "6")
        assert up.returncode == 0, up.stderr
        assert "balancers: balancer1" in up.stdout
        assert "curl http://198.51.100.1/" in up.stdout
        for vip in ("198.51.100.1", "[2001:db8:9::7]"):
            code = f"from urllib.request import *; print(urlopen('http://{vip}/').read().decode())"
            asked = sockway("exec", "--name", name, "client1", "--", sys.executable, "-c", code)
            assert asked.stdout == "backend1\n"
        assert sockway("exec", "--name", name, "client1", "--", "false").returncode == 1
        assert sockway("exec", "--name", name, "client1", "--", "nothing").returncode == 3
        status = sockway("status", name, "--json")
        assert '"role": "balancer"' in status.stdout
        assert sockway("up", str(file)).returncode == 1
    finally:
        down = sockway("down", name)
    assert down.returncode == 0, down.stderr
    assert not traces(name)
    assert not [*bpffs_root.glob("*/@*")]
    assert sockway("down", name).returncode == 3


def described(role: str, **addresses: str) -> str:
    """Hosts of a role with these IPv4 addresses, in three lines each."""
    return "".join(
        f'[[{role}]]\nname = "{name}"\naddress4 = "{address}"\n'
        for name, address in addresses.items()
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clients = 0\n", "line 1: clients"),
        ('name = "A b"\n', "line 1: name"),
        ("clients = 2\nservers = 1\n", "line 2: servers"),
        ('vips4 = "10.77.0.0/24"\n', "line 1: vips4"),
        ('vips4 = "224.0.0.0/4"\n', "line 1: vips4.*224.0.0.0/4 is multicast"),
        ('vips4 = "127.9.0.0/16"\n', "line 1: vips4.*127.0.0.0/8 is loopback"),
        ('vips4 = "0.0.0.0/0"\n', "line 1: vips4"),
        ('vips6 = "ff02::/16"\n', "line 1: vips6.*ff00::/8 is multicast"),
        ('vips6 = "::1/128"\n', "line 1: vips6.*loopback"),
        ('vips6 = "fe80::/64"\n', "line 1: vips6.*link-local"),
        ("clients = ", "is not TOML"),
        ('[[client]]\nname = "Alice"\n', r"line 2: client\[0\].name"),
        ('[[client]]\nname = "eth0"\n', "line 2: client.*name of an interface"),
        ('[[client]]\nname = "a"\n[[backend]]\nname = "a"\n', "line 4: backend.*there twice"),
        ('[[client]]\nname = "a"\nrouter = "b"\n', "line 3: client.*no router 'b'"),
        ('backends = 2\n[[backend]]\nname = "a"\n', "line 1: backends.*counted and described"),
        ('[[router]]\nname = "a"\n[[router]]\nname = "b"\n', "line 3: router.*before b"),
        ('[[router]]\nname = "a"\nuplink = "a"\n', "line 3: router.*has no uplink"),
        ('[[client]]\nname = "a"\naddress4 = "10.1.1.1"\n', "line 3: client.*no host's of 10.77"),
        ('[[client]]\nname = "a"\naddress4 = "10.77.1.255"\n', "line 3: client.*no host's"),
        ('[[client]]\nname = "a"\naddress6 = "fd77:0:0:1::"\n', "line 3: client.*no host's"),
        (
            described("client", a="10.77.9.1") + described("client", b="10.77.9.2"),
            "line 6: client.*b is in 10.77.9.0/24, as a is",
        ),
        (
            described("client", a="10.77.254.9")
            + '[[router]]\nname = "r"\n[[router]]\nname = "s"\nuplink = "r"\n',
            "line 3: client.*as s is",
        ),
    ],
)
def test_a_description_that_can_not_be(tmp_path: Path, text: str, words: str) -> None:
    """One error with file, line and field."""
    file = tmp_path / "lab.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        Topology.read(file)


def test_a_picture_in_text() -> None:
    """All hosts are in it."""
    drawn = Topology(clients=2, balancers=2, backends=4).drawn()
    for node in Topology(clients=2, balancers=2, backends=4).nodes:
        assert node.name in drawn


TREE = """
name = "{name}"

[[router]]
name = "edge"

[[router]]
name = "core"
uplink = "edge"

[[router]]
name = "attic"
uplink = "core"

[[client]]
name = "alice"

[[client]]
name = "bob"
router = "attic"
address4 = "10.77.40.7"
address6 = "fd77:0:0:40::1"

[[balancer]]
name = "lb1"
router = "core"

[[balancer]]
name = "lb2"
router = "attic"

[[backend]]
name = "web1"
router = "core"

[[backend]]
name = "web2"
router = "attic"
"""


def test_described_hosts_have_what_was_asked_for(tmp_path: Path) -> None:
    """Names, addresses and routers; what was left out follows."""
    file = tmp_path / "lab.toml"
    file.write_text(TREE.format(name="tree"), encoding="utf-8")
    topology = Topology.read(file)
    nodes = {node.name: node for node in topology.nodes}
    assert list(nodes) == ["alice", "bob", "lb1", "lb2", "web1", "web2"]
    assert (nodes["alice"].router, nodes["bob"].router) == ("edge", "attic")
    bob = nodes["bob"]
    assert (bob.address4, bob.router4, bob.router6) == (
        "10.77.40.7", "10.77.40.1", "fd77:0:0:40::2",
    )  # fmt: skip
    assert len({node.number for node in nodes.values()}) == len(nodes)
    assert topology.path("attic", "edge") == ["attic", "core", "edge"]
    assert topology == Topology.model_validate_json(topology.model_dump_json(exclude_unset=True))


def test_routers_send_to_the_nearest(tmp_path: Path) -> None:
    """Each hop is nearer than the one before; as heavy as there are balancers behind it."""
    file = tmp_path / "lab.toml"
    file.write_text(TREE.format(name="tree"), encoding="utf-8")
    topology = Topology.read(file)
    balancers = [node for node in topology.nodes if node.role == "balancer"]

    def next_hops(router: str, chosen: list[NodePlan]) -> dict[str, int]:
        return {hop.interface: hop.weight for hop in to_vips(topology, router, chosen)}

    assert next_hops("edge", balancers) == {"core": 1}
    assert next_hops("core", balancers) == {"lb1": 1}
    assert next_hops("attic", balancers) == {"lb2": 1}
    assert next_hops("attic", balancers[:1]) == {LINK: 1}
    assert next_hops("core", []) == {}
    both = Topology(clients=1, balancers=3, backends=0)
    hops = to_vips(both, "router", [node for node in both.nodes if node.role == "balancer"])
    assert [hop.weight for hop in hops] == [1, 1, 1]


def test_a_drawn_picture(tmp_path: Path) -> None:
    """Well-formed SVG with every host and its addresses; no two boxes overlap."""
    file = tmp_path / "lab.toml"
    file.write_text(TREE.format(name="tree"), encoding="utf-8")
    for topology in (Topology.read(file), Topology(clients=9, balancers=5, backends=11)):
        root = ET.fromstring(draw(topology))  # noqa: S314 - our own
        texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
        for node in topology.nodes:
            assert {node.name, node.address4, node.address6} <= texts
        boxes = [
            tuple(float(box.attrib[side]) for side in ("x", "y", "width", "height"))
            for box in root.iter("{http://www.w3.org/2000/svg}rect")
        ]
        assert len(boxes) == len(topology.nodes) + len(topology.routers)
        for one, other in itertools.combinations(boxes, 2):
            beside = one[0] + one[2] <= other[0] or other[0] + other[2] <= one[0]
            below = one[1] + one[3] <= other[1] or other[1] + other[3] <= one[1]
            assert beside or below


@needs_root
@pytest.mark.usefixtures("bpffs_root")
def test_several_routers(name: str, tmp_path: Path) -> None:
    """Clients at both ends of a tree reach VIPs by the balancer that is nearest, or is left."""
    file = tmp_path / "lab.toml"
    file.write_text(TREE.format(name=name), encoding="utf-8")
    with Lab.up(Topology.read(file)) as lab:
        fleet = Fleet(lab, http3=False)
        fleet.start()
        for client in lab.of("client"):
            for vip in VIPS:
                found = ask(client, vip, 40, socket.SOCK_STREAM)
                assert set(found) == {"web1", "web2"}, (client.name, vip)
        for node in lab.of("balancer"):
            assert node.run(lambda: Balancer.existing().counters().sent), node.name
        lab.route_vips(["lb2"])
        fleet.lose(lab.node("lb1"))
        assert ask(lab.node("alice"), VIPS[0], 20, socket.SOCK_STREAM).total() == 20
    assert not traces(name)
