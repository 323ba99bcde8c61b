"""`sockway balancer`, `backend` and `lab` as scripts see them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute
from typer.testing import CliRunner, Result

from sockway.cli import app
from sockway.kernel import Netns, cgroup

pytestmark = pytest.mark.root

CONFIG = """\
interfaces = ["out0"]
secret = "of the test"

[[vip]]
listen = "tcp://192.0.2.1:443"
pool = "web"

[pool.web.backends]
web1 = "10.0.0.11"
web2 = "10.0.0.12"
"""
BACKEND = """\
interfaces = ["out0"]
balancers = ["10.0.0.0/24"]
vips = ["192.0.2.1"]
"""

Run = Callable[..., Result]


@pytest.fixture
def run(
    netns: Netns, bpffs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Runs a command in a namespace with an interface, in this process."""
    del bpffs_root
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    Path("lb.toml").write_text(CONFIG, encoding="utf-8")
    Path("backend.toml").write_text(BACKEND, encoding="utf-8")

    def prepare() -> None:
        with IPRoute() as route:
            route.link("add", ifname="out0", kind="veth", peer="far0")
            for name in ("out0", "far0"):
                route.link("set", index=route.link_lookup(ifname=name)[0], state="up")
            index = route.link_lookup(ifname="out0")[0]
            route.addr("add", index=index, address="10.0.0.1", prefixlen=24)
            for last in (11, 12):
                link = {"lladdr": f"02:00:00:00:00:{last}", "ifindex": index, "state": 0x80}
                route.neigh("add", dst=f"10.0.0.{last}", **link)

    netns.run(prepare)

    def invoke(*arguments: str) -> Result:
        return netns.run(lambda: CliRunner().invoke(app, list(arguments)))

    yield invoke
    invoke("balancer", "remove")
    invoke("backend", "down")


def answer(result: Result) -> dict[str, Any]:
    """The JSON of a command that went well."""
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_balancers_life(run: Run) -> None:
    """Shown first, applied, asked, changed, removed; each with --json."""
    dry = answer(run("balancer", "apply", "lb.toml", "--dry-run", "--json"))
    assert dry["applied"] is False
    assert {"kind": "add", "what": "vip tcp://192.0.2.1:443"}.items() <= dry["changes"][-1].items()
    assert run("balancer", "status").exit_code == 3  # nothing was made
    shown = run("balancer", "apply", "lb.toml", "--yes")
    assert "+ pool web, backend web1: 10.0.0.11, weight 100" in shown.output
    assert "out0: generic; what is sent back out of out0 needs an XDP program" in shown.output
    again = answer(run("balancer", "apply", "lb.toml", "--json"))
    assert again["changes"] == []
    assert again["modes"]["out0"]["mode"] == "generic"

    status = answer(run("balancer", "status", "--json"))
    assert status["interfaces"] == ["out0"]
    assert status["modes"] == again["modes"]
    assert status["undelivered"] == {"frames": 0, "ways": []}
    assert "out0: generic; " in run("balancer", "status").output
    assert [b["state"] for b in status["pools"]["web"]] == ["up", "up"]
    assert "10.0.0.11" in run("balancer", "status").output

    explained = answer(
        run("balancer", "explain", "tcp", "198.51.100.1:40000", "192.0.2.1:443", "--syn", "--json")
    )
    assert explained["outcome"] == "by_ring"
    assert explained["backend"] in {"web1", "web2"}
    owner = explained["backend"]
    assert owner in run(
        "balancer", "explain", "tcp", "198.51.100.1:40000", "192.0.2.1:443"
    ).output  # fmt: skip

    assert answer(run("balancer", "drain", owner, "--json"))["ok"]
    drained = {b["name"]: b for b in answer(run("balancer", "status", "--json"))["pools"]["web"]}
    assert drained[owner]["state"] == "drained"
    assert drained[owner]["share"] == 0
    assert run("balancer", "restore", owner).exit_code == 0
    assert run("balancer", "down", owner).exit_code == 0
    assert run("balancer", "restore", owner).exit_code == 0
    weighed = answer(run("balancer", "weight", "web", "web1", "7", "--json"))
    assert weighed["changes"][0]["after"] == 7
    assert "weight 7 -> 100" in run("balancer", "apply", "lb.toml", "--yes").output

    stats = answer(run("balancer", "stats", "--json"))
    assert stats["backends"]["web1"] == {"packets": 0, "octets": 0}
    assert stats["undelivered"] == {"frames": 0, "ways": []}
    assert "web1" in run("balancer", "stats").output
    captured = answer(
        run("balancer", "capture", "--write", "x.pcapng", "--seconds", "0.2", "--json")
    )
    assert captured == {"ok": True, "file": "x.pcapng", "packets": 0}
    assert Path("x.pcapng").stat().st_size > 0

    assert answer(run("balancer", "remove", "--json"))["ok"]
    assert run("balancer", "status").exit_code == 3


def test_a_backends_life(run: Run) -> None:
    """Up, shown, down."""
    assert answer(run("backend", "up", "backend.toml", "--json"))["interfaces"] == ["out0"]
    status = answer(run("backend", "status", "--json"))
    assert status["vips"] == ["192.0.2.1"]
    assert status["counters"]["decapsulated"] == 0
    assert "decapsulated" in run("backend", "status").output
    assert run("backend", "down").exit_code == 0
    assert run("backend", "status").exit_code == 3


@pytest.fixture
def stamped_backend() -> Iterator[str]:
    """The part of a backend's file that has it stamp, in a cgroup of its own."""
    place = cgroup.mount() / f"sockway-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    yield f"""
[stamp]
cgroup = "{place}"
server_id = 17
server_ports = [443]
peers = ["10.0.0.0/8"]
profile = "katran"
"""
    place.rmdir()


def test_a_backend_that_stamps(run: Run, stamped_backend: str) -> None:
    """By its own file: up, shown, without, and off with it."""
    file = Path("backend.toml")
    file.write_text(BACKEND + stamped_backend, encoding="utf-8")
    assert answer(run("backend", "up", "backend.toml", "--json"))["server_id"] == 17
    stamp = answer(run("backend", "status", "--json"))["stamp"]
    assert (stamp["server_id"], stamp["server_ports"], stamp["counters"]["told"]) == (17, [443], 0)
    assert "stamps, server ID: 17" in run("backend", "status").output
    assert [each["name"] for each in answer(run("stamp", "status", "--json"))["stamps"]] == ["main"]

    file.write_text(BACKEND + stamped_backend.replace("443", "80"), encoding="utf-8")
    assert run("backend", "up", "backend.toml").exit_code == 0
    assert answer(run("stamp", "status", "--name", "main", "--json"))["server_ports"] == [80]

    file.write_text(BACKEND, encoding="utf-8")
    assert run("backend", "up", "backend.toml").exit_code == 0
    assert answer(run("backend", "status", "--json"))["stamp"] is None
    assert "nothing is stamped" in run("stamp", "status").output

    file.write_text(BACKEND + stamped_backend, encoding="utf-8")
    assert run("backend", "up", "backend.toml").exit_code == 0
    assert run("backend", "down").exit_code == 0
    assert "nothing is stamped" in run("stamp", "status").output


def test_a_backend_whose_id_is_of_the_registry(
    run: Run, stamped_backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which knows that it is told, until it ends; `down` that can't say so can be done again."""
    registry, away = tmp_path / "ids.db", tmp_path / "away.db"
    monkeypatch.setenv("SOCKWAY_IDS", str(registry))
    text = BACKEND + stamped_backend.replace("server_id = 17", 'backend = "web1"')
    Path("backend.toml").write_text(text, encoding="utf-8")
    assert run("backend", "up", "backend.toml").exit_code == 3
    assert run("backend", "status").exit_code == 3
    number = answer(run("ids", "assign", "web1", "--json"))["ids"][0]["server_id"]
    assert run("backend", "up", "backend.toml").exit_code == 1  # no balancer has it yet
    assert "nothing is stamped" in run("stamp", "status").output
    assert run("ids", "report", "lb1", "1").exit_code == 0
    assert answer(run("backend", "up", "backend.toml", "--json"))["server_id"] == number
    assert "still stamps" in run("ids", "retire", "web1").stderr

    registry.rename(away)
    registry.write_text("no registry", encoding="utf-8")
    refused = run("backend", "down")
    assert refused.exit_code != 0
    assert "told no more" in refused.stderr
    assert run("backend", "status").exit_code == 0
    away.rename(registry)
    assert run("backend", "down").exit_code == 0
    assert run("ids", "retire", "web1").exit_code == 0


def test_a_backend_that_can_not_come_up_stamps_nothing(run: Run, stamped_backend: str) -> None:
    """Nor does one whose stamps are refused open tunnels."""
    file = Path("backend.toml")
    file.write_text(BACKEND.replace("out0", "none0") + stamped_backend, encoding="utf-8")
    assert run("backend", "up", "backend.toml").exit_code == 2
    assert "nothing is stamped" in run("stamp", "status").output
    broken = stamped_backend.replace("/sockway-", "/none-")
    file.write_text(BACKEND + broken, encoding="utf-8")
    assert "can't open cgroup" in run("backend", "up", "backend.toml").stderr
    assert run("backend", "status").exit_code == 3
    file.write_text(BACKEND + broken.replace("profile", "#"), encoding="utf-8")
    refused = run("backend", "up", "backend.toml").stderr
    assert "line 5: stamp.server_kind is missing" in refused
    assert 'profile = "katran"' in refused


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("balancer", "apply", "none.toml"), 2, "can't read none.toml"),
        (("balancer", "status"), 3, "there is no balancer 'main'"),
        (("balancer", "remove", "--name", "other"), 3, "there is no balancer 'other'"),
        (("balancer", "explain"), 2, "no packet to explain"),
        (("balancer", "explain", "--frame", "xyz"), 2, "hexadecimal"),
        (("balancer", "explain", "sctp", "1.2.3.4:5", "192.0.2.1:443"), 2, "no protocol"),
        (("balancer", "explain", "tcp", "1.2.3.4", "192.0.2.1:443"), 2, "no address with a port"),
        (("balancer", "explain", "tcp", "[fd00::1]:5", "192.0.2.1:443"), 2, "not of one family"),
        (("balancer", "run", "none.toml"), 2, "can't read none.toml"),
        (("backend", "up", "lb.toml"), 2, "lb.toml: balancers is missing"),
        (("backend", "status"), 3, "there is no backend 'main'"),
        (("lab", "status", "nolab"), 3, "there is no lab 'nolab'"),
        (("lab", "exec", "--name", "nolab", "client1", "true"), 3, "there is no lab 'nolab'"),
        (("lab", "up", "--tunnel", "5"), 2, "--tunnel 5"),
        (("lab", "run", "magic"), 2, "there is no experiment 'magic'"),
    ],
)
def test_what_can_not_be_is_one_error(
    run: Run, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """One line, the exit code of its kind, no traceback."""
    result = run(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.startswith("sockway: error: ")


def test_unknown_backends_and_pools(run: Run) -> None:
    """The error names those there are."""
    run("balancer", "apply", "lb.toml", "--yes")
    for arguments in (("drain", "web9"), ("weight", "web", "web9", "1"), ("down", "web9")):
        result = run("balancer", *arguments)
        assert result.exit_code == 3
        assert "web1, web2" in result.stderr
    result = run("balancer", "weight", "wbe", "web1", "1")
    assert "pools are: web" in result.stderr
    result = run("balancer", "weight", "web", "web1", "70000")
    assert result.exit_code == 2
    assert "0 to 65535" in result.stderr
    result = run("balancer", "capture", "tcp://192.0.2.7:1", "--seconds", "0.1")
    assert "there is no VIP" in result.stderr
