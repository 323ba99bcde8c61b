"""Server IDs in their order, among real balancers, stamps and connections."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sockway.balancer import Balancer
from sockway.balancer.stamping import Stamping
from sockway.cli import app
from sockway.kernel.features.host import cgroup2_mount
from sockway.lab.fleet import HTTP, POOL, SECRET, VIPS, Fleet
from sockway.lab.lasting import LastingConnections
from sockway.lab.network import LINK, Node
from tests.lab.fleets import agent_of, balancer, fleet_of

pytestmark = pytest.mark.root

TARGET = [(VIPS[0], HTTP)]


@pytest.fixture(autouse=True)
def places(bpffs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins, notes and the registry are the test's own."""
    del bpffs_root
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path / "run"))
    monkeypatch.setenv("SOCKWAY_IDS", str(tmp_path / "ids.db"))


def sockway(*arguments: object, node: Node | None = None) -> Result:
    """Run a command, on a host."""

    def running() -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return running() if node is None else node.run(running)


def done(result: Result) -> dict[str, Any]:
    """What a command says that went well."""
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def configuration(fleet: Fleet, node: Node, place: Path, members: list[str]) -> Path:
    """A balancer's file that takes IDs from the registry, with nothing to remember flows by."""
    lines = [
        f'interfaces = ["{LINK}"]', f'secret = "{SECRET}"', 'memory = "none"',
        f'registry = "{place / "ids.db"}"', f'registry_as = "{node.name}"',
        "[stamp]", "kind = 0xB7",
        "[[vip]]", f'listen = "tcp://{VIPS[0]}:{HTTP}"', f'pool = "{POOL}"', "stamps = true",
        f"[pool.{POOL}.backends]",
    ]  # fmt: skip
    for name in members:
        plan = fleet.lab.node(name).plan
        assert plan is not None
        lines.append(f'{name} = "{plan.address4}"')
    file = place / f"{node.name}.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def stamping(fleet: Fleet, name: str, place: Path) -> Path:
    """A backend's stamps, by its name; until then there are none."""
    known = f"{fleet.lab.topology.name}-{name}"
    Stamping.existing(known).down()
    cgroup = next(Path(cgroup) for cgroup in _cgroups(fleet) if Path(cgroup).name == name)
    file = place / f"stamp-{name}.toml"
    file.write_text(
        f'name = "{known}"\ncgroup = "{cgroup}"\nbackend = "{name}"\n'
        f'server_ports = [{HTTP}]\npeers = ["10.77.0.0/16"]\n'
        "server_kind = 0xB6\nclient_kind = 0xB7\n",
        encoding="utf-8",
    )
    return file


def _cgroups(fleet: Fleet) -> list[Path]:
    mount = cgroup2_mount()
    assert mount is not None
    return list((mount / f"sockway-{fleet.lab.topology.name}").iterdir())


def soon(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def ids_of(node: Node) -> dict[str, int]:
    """Server IDs that a balancer has in force."""

    def looking() -> dict[str, int]:
        with Balancer.existing() as found:
            backends = found.spec.pool[POOL].backends
            return {name: backend.server_id for name, backend in backends.items()}

    return node.run(looking)


def test_balancers_know_an_id_before_it_is_told_and_until_it_is_not(tmp_path: Path) -> None:
    """And no connection breaks on the way: each is led by its stamp alone."""
    settings = {"http3": False, "stamps": True}
    with fleet_of(settings, backends=2, clients=1) as fleet:
        one, other = fleet.lab.of("balancer")
        for node in fleet.lab.of("backend"):
            fleet.start_backend(node)
        files = {name: stamping(fleet, name, tmp_path) for name in ("backend1", "backend2")}
        done(sockway("ids", "assign", "backend1", "--json"))
        applied = configuration(fleet, other, tmp_path, ["backend1"])
        done(sockway("balancer", "apply", applied, "--json", node=other))
        agent = agent_of(one, configuration(fleet, one, tmp_path, ["backend1"]))
        done(sockway("stamp", "up", files["backend1"], "--json"))

        # A new ID: the agent learns it by itself, the other balancer lags behind.
        number = done(sockway("ids", "assign", "backend2", "--json"))["ids"][0]["server_id"]
        configuration(fleet, one, tmp_path, ["backend1", "backend2"])
        agent.send_signal(signal.SIGHUP)
        soon(lambda: ids_of(one).get("backend2") == number)
        refused = sockway("stamp", "up", files["backend2"])
        assert refused.exit_code == 1
        assert f"balancer {other.name} lacks revision 2, which has server ID {number}" in (
            refused.stderr
        )
        assert not Stamping.existing(f"{fleet.lab.topology.name}-backend1").counters()["told"]
        with pytest.raises(Exception, match="nothing is stamped"):
            Stamping.existing(f"{fleet.lab.topology.name}-backend2")

        # It waits for what is missing, and no longer.
        waiting = subprocess.Popen(
            [sys.executable, "-m", "sockway", "stamp", "up", files["backend2"], "--wait", "20"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(0.5)
        assert waiting.poll() is None
        applied = configuration(fleet, other, tmp_path, ["backend1", "backend2"])
        done(sockway("balancer", "apply", applied, "--json", node=other))
        assert waiting.communicate(timeout=10)[1] == ""
        assert waiting.returncode == 0

        clients = fleet.lab.of("client")
        with fleet.as_client(), LastingConnections.open(clients, TARGET, 60) as lasting:
            assert len(lasting.owners()) == 2
            _take_back(fleet, files["backend2"], applied, lasting)
        assert "quarantined" in sockway("ids", "list").output

        # Who is forgotten by mistake is known again; a registry that is lost is told once.
        done(sockway("ids", "forget-balancer", one.name, "--json"))
        soon(lambda: one.name in sockway("ids", "balancers").output)
        (tmp_path / "ids.db").rename(tmp_path / "lost.db")
        time.sleep(2.5)
        agent.terminate()
        said, _ = agent.communicate(timeout=10)
        assert agent.returncode == 0
        assert said.count('"no_new_ids"') == 1
        assert said.count('"learnt_ids"') >= 3


def _take_back(fleet: Fleet, stamps: Path, applied: Path, lasting: LastingConnections) -> None:
    """Nobody is retired who still tells its ID, and balancers know it till the end."""
    one, other = fleet.lab.of("balancer")
    number = ids_of(one)["backend2"]
    for node in (one, other):
        balancer(node, "set_drained", "backend2")
    assert lasting.ask() == {"alive": 60}

    refused = sockway("ids", "retire", "backend2")
    assert refused.exit_code == 1
    assert "backend2 still stamps with server ID" in refused.stderr
    name = f"{fleet.lab.topology.name}-backend2"
    done(sockway("stamp", "down", "--name", name, "--json"))
    done(sockway("ids", "retire", "backend2", "--json"))
    refused = sockway("stamp", "up", stamps)
    assert "is being retired" in refused.stderr
    done(sockway("balancer", "apply", applied, "--json", node=other))
    soon(lambda: not sockway("ids", "list", "--json").stdout.count(one.name))
    assert ids_of(one) == ids_of(other)
    assert ids_of(one)["backend2"] == number
    assert lasting.ask() == {"alive": 60}

    # Drained: balancers forget it, the agent by itself.
    done(sockway("ids", "configure", "--drain", "0", "--json"))
    soon(lambda: ids_of(one)["backend2"] == 0)
    done(sockway("balancer", "apply", applied, "--json", node=other))
    assert ids_of(other)["backend2"] == 0
    fates = lasting.ask()
    assert fates["alive"] < 60  # so it was the stamp that led them
