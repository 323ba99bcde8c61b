"""Networks that are built and taken away again, and their descriptions."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from sockway.errors import ConfigError, NotFoundError, SockwayError, StateError
from sockway.lab.network import NAMESPACES, RUNTIME, Lab
from sockway.lab.topology import Topology

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
    file.write_text(f'name = "{name}"\nclients = 1\nbalancers = 1\nbackends = 1\n')
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
        code = "import urllib.request as u; print(u.urlopen('http://192.0.2.1/').read().decode())"
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("clients = 0\n", "line 1: clients"),
        ('name = "A b"\n', "line 1: name"),
        ("clients = 2\nservers = 1\n", "line 2: servers"),
        ('vips4 = "10.77.0.0/24"\n', "line 1: vips4"),
        ("clients = ", "is not TOML"),
    ],
)
def test_a_description_that_can_not_be(tmp_path: Path, text: str, words: str) -> None:
    """One error with file, line and field."""
    file = tmp_path / "lab.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        Topology.read(file)


def test_a_picture() -> None:
    """All hosts are in it."""
    drawn = Topology(clients=2, balancers=2, backends=4).drawn()
    for node in Topology(clients=2, balancers=2, backends=4).nodes:
        assert node.name in drawn
