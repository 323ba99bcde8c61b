"""`sockway ids`, and configurations that take server IDs from the registry, as scripts see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute
from typer.testing import CliRunner, Result

from sockway.balancer import Balancer, read_file
from sockway.cli import app
from sockway.errors import BusyError, ConfigError
from sockway.fleet import read_resolved
from sockway.kernel import Netns

CONFIG = """\
interfaces = ["out0"]
secret = "of the test"
registry = "ids.db"
registry_as = "lb1"

[[quic_ids]]
rotation = 1
server_id_length = 3

[[vip]]
listen = "udp://192.0.2.1:443"
pool = "web"
stamps = true

[pool.web.backends]
web1 = "10.0.0.11"
web2 = { address = "10.0.0.12", id_of = "second" }
web3 = { address = "10.0.0.13", server_id = 0 }
"""

Run = Callable[..., Result]


@pytest.fixture
def ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `sockway ids` over a registry of the test's own."""
    monkeypatch.setenv("SOCKWAY_IDS", str(tmp_path / "ids.db"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["ids", *arguments])


@pytest.fixture
def run(netns: Netns, bpffs_root: Path, ids: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command in a namespace with an interface."""
    del bpffs_root, ids
    monkeypatch.setenv("SOCKWAY_RUNTIME", "run")
    Path("lb.toml").write_text(CONFIG, encoding="utf-8")

    def prepare() -> None:
        with IPRoute() as route:
            route.link("add", ifname="out0", kind="veth", peer="far0")
            index = route.link_lookup(ifname="out0")[0]
            route.link("set", index=index, state="up")
            route.addr("add", index=index, address="10.0.0.1", prefixlen=24)

    netns.run(prepare)

    def invoke(*arguments: str) -> Result:
        return netns.run(lambda: CliRunner().invoke(app, list(arguments)))

    yield invoke
    invoke("balancer", "remove")


def answer(result: Result) -> dict[str, Any]:
    """The JSON of a command that went well."""
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def in_force(run: Run, netns: Netns) -> dict[str, int]:
    """Server IDs of the balancer's backends."""
    del run
    with netns.entered(), Balancer.existing() as balancer:
        backends = balancer.spec.pool["web"].backends
        return {name: backend.server_id for name, backend in backends.items()}


def test_the_life_of_ids(ids: Run) -> None:
    """Each command, for people and with --json."""
    first = answer(ids("assign", "web1", "web2", "--json"))["ids"]
    assert answer(ids("assign", "web1", "--json"))["ids"] == first[:1]
    assert "web3 has server ID 17, revision 3" in ids("assign", "web3", "--id", "17").output
    assert answer(ids("report", "lb1", "3", "--json"))["revision"] == 3
    assert answer(ids("balancers", "--json"))["balancers"][0]["balancer"] == "lb1"
    assert "lb1" in ids("balancers").output
    assert ids("env", "web3").output == "SOCKWAY_SERVER_ID=17\n"
    refused = ids("retire", "web3")
    assert refused.exit_code == 1
    assert "web3 still stamps with server ID 17: quic main on " in refused.stderr
    assert answer(ids("env", "web3", "--stop", "--json"))["ok"]
    assert answer(ids("retire", "web3", "--json"))["state"] == "retiring"
    listed = answer(ids("list", "--json"))
    assert {e["name"]: e["lacking"] for e in listed["ids"]} == {
        "web1": [], "web2": [], "web3": ["lb1"],
    }  # fmt: skip
    assert "retiring, 60 m left" in ids("list").output
    assert answer(ids("forget-balancer", "lb1", "--json"))["balancer"] == "lb1"
    assert "no balancer has reported" in ids("balancers").output
    assert answer(ids("export", "copy.json", "--json"))["file"] == "copy.json"
    assert json.loads(Path("copy.json").read_text()) == json.loads(ids("export").stdout)
    taken = answer(ids("import", "copy.json", "--registry", "other.db", "--json"))
    assert len(taken["ids"]) == 3
    assert "0 IDs are new, 3 were there" in ids("import", "copy.json").output
    rules = answer(ids("configure", "--quarantine", "90m", "--drain", "0", "--bits", "8", "--json"))
    assert rules["rules"] == {"bits": 8, "quarantine": 5400.0, "drain": 0.0}
    assert "IDs of 8 bits, quarantine 1.5 h, drain 0 s" in ids("configure").output
    assert "quarantined" in ids("list").output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("list",), 3, "there is no registry of server IDs at "),
        (("list", "--registry", "/proc/none/x"), 3, "/proc/none/x"),
        (("assign", "a", "--registry", "/proc/none/x"), 2, "can't make /proc/none/x"),
        (("assign", "a", "b", "--id", "5"), 2, "--id 5 is one ID"),
        (("assign", "a b"), 2, "is no name"),
        (("configure", "--drain", "soon"), 2, "'soon' is no length of time"),
        (("import", "none.json"), 2, "can't read none.json"),
    ],
)
def test_what_can_not_be_is_one_error(
    ids: Run, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """One line, the exit code of its kind, no traceback."""
    result = ids(*arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("sockway: error: ")
    assert words in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.root
def test_a_balancer_takes_its_ids_and_reports(run: Run, netns: Netns) -> None:
    """All names must be known; explicit IDs go on; what is retired stays until it is drained."""
    refused = run("balancer", "apply", "lb.toml", "--yes")
    assert refused.exit_code == 3
    assert "there is no registry of server IDs at " in refused.stderr
    run("ids", "assign", "web9")
    refused = run("balancer", "apply", "lb.toml", "--yes")
    assert refused.exit_code == 2
    assert (
        "lb.toml, line 16: pool.web.backends.web1: no server ID of web1, second" in refused.stderr
    )
    assert "`sockway ids assign web1 second`" in refused.stderr
    assert run("balancer", "status").exit_code == 3  # nothing was made

    given = answer(run("ids", "assign", "web1", "second", "--json"))["ids"]
    numbers = {entry["name"]: entry["server_id"] for entry in given}
    applied = answer(run("balancer", "apply", "lb.toml", "--json"))
    assert applied["revision"] == 3
    wanted = {"web1": numbers["web1"], "web2": numbers["second"], "web3": 0}
    assert in_force(run, netns) == wanted
    (report,) = answer(run("ids", "balancers", "--json"))["balancers"]
    assert (report["balancer"], report["revision"]) == ("lb1", 3)
    assert report["carries"] == {"udp://192.0.2.1:443": ["second", "web1"]}
    assert "revision 3" in run("balancer", "apply", "lb.toml").output

    run("ids", "retire", "second")
    assert answer(run("balancer", "apply", "lb.toml", "--json"))["changes"] == []
    assert in_force(run, netns) == wanted
    run("ids", "configure", "--drain", "0")
    (change,) = answer(run("balancer", "apply", "lb.toml", "--json"))["changes"]
    assert (change["field"], change["after"]) == ("server_id", 0)
    assert in_force(run, netns) == wanted | {"web2": 0}
    assert answer(run("balancer", "weight", "web", "web1", "7", "--json"))["ok"]
    assert answer(run("balancer", "remove", "--json"))["ok"]
    assert answer(run("ids", "balancers", "--json"))["balancers"] == []


@pytest.mark.root
def test_a_registry_that_was_restored_gives_no_id_twice(run: Run, netns: Netns) -> None:
    """A balancer tells it by what it has in force, and `adopt` takes that in."""
    run("ids", "assign", "web1")
    run("ids", "export", "old.json")
    run("ids", "assign", "second")
    run("balancer", "apply", "lb.toml", "--yes")
    before = in_force(run, netns)
    for file in Path().glob("ids.db*"):
        file.unlink()
    run("ids", "import", "old.json")
    for name in ("a", "b", "second"):  # its revision is that of the balancer again, and beyond
        run("ids", "assign", name)
    refused = run("balancer", "apply", "lb.toml", "--yes")
    assert refused.exit_code == 1
    assert "does not know its own revision 2" in refused.stderr
    assert "sockway ids adopt --name main" in refused.stderr
    assert in_force(run, netns) == before
    refused = run("ids", "adopt")
    assert f"second has server ID {before['web2']} in force" in refused.stderr
    run("ids", "retire", "second", "--force")
    run("ids", "configure", "--drain", "0")
    assert f"taken in: second {before['web2']}" in run("ids", "adopt").output
    assert run("balancer", "apply", "lb.toml", "--yes").exit_code == 0
    assert in_force(run, netns) == before


@pytest.mark.root
def test_ids_that_were_written_by_hand_are_adopted(run: Run, netns: Netns) -> None:
    """A registry that has others is refused: connections carry those in force."""
    by_hand = CONFIG.replace('registry = "ids.db"\nregistry_as = "lb1"\n', "")
    by_hand = by_hand.replace('id_of = "second"', "server_id = 18")
    by_hand = by_hand.replace('"10.0.0.11"', '{ address = "10.0.0.11", server_id = 17 }')
    Path("hand.toml").write_text(by_hand, encoding="utf-8")
    assert run("balancer", "apply", "hand.toml", "--yes").exit_code == 0
    Path("lb.toml").write_text(CONFIG.replace(', id_of = "second"', ""), encoding="utf-8")
    run("ids", "assign", "web1", "web2", "--registry", "other.db")
    other = Path("lb.toml").read_text().replace("ids.db", "other.db")
    Path("other.toml").write_text(other, encoding="utf-8")
    refused = run("balancer", "apply", "other.toml", "--yes")
    assert refused.exit_code == 1
    assert "pool.web.backends.web1 has server ID 17 in force" in refused.stderr
    assert "taken in: web1 17, web2 18" in run("ids", "adopt").output
    assert run("balancer", "apply", "lb.toml", "--yes").exit_code == 0
    assert in_force(run, netns) == {"web1": 17, "web2": 18, "web3": 0}


@pytest.mark.root
def test_configurations_that_contradict_the_registry(run: Run) -> None:
    """One error each, and nothing is applied."""
    run("ids", "assign", "web1", "second", "--id", "70000")
    run("ids", "assign", "web1", "--id", "17")
    run("ids", "assign", "second", "--id", "70000")
    for old, new, words in (
        ("server_id = 0", "server_id = 17", "server ID 17 is that of web1 in the registry"),
        ("server_id_length = 3", "server_id_length = 2", "70000 of web2 does not fit into the 16"),
        ('"second"', '"none"', "no server ID of none is in the registry"),
    ):
        Path("bad.toml").write_text(CONFIG.replace(old, new), encoding="utf-8")
        refused = run("balancer", "apply", "bad.toml", "--yes")
        assert refused.exit_code == 2
        assert words in refused.stderr
    assert run("balancer", "status").exit_code == 3


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('registry = "ids.db"\n', "", "line 16.*id_of names nothing: there is no registry"),
        ('id_of = "second"', 'id_of = "second", server_id = 5', "both id_of and server_id"),
        (
            "[pool",
            '[registered]\nregistry = "x"\nrevision = 1\ntoken = "x"\nbalancer = "x"\n\n[pool',
            "line 15: registered: it is filled in",
        ),
    ],
)
def test_configurations_that_contradict_themselves(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    """Are found when they are read."""
    file = tmp_path / "lb.toml"
    file.write_text(CONFIG.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        read_file(file)


@pytest.mark.root
def test_older_ids_do_not_replace_newer_ones(run: Run, netns: Netns) -> None:
    """Who read the registry first and applies last would undo what was reported."""
    run("ids", "assign", "web1", "second")
    with netns.entered():
        slow = read_resolved("lb.toml")
        assert run("ids", "assign", "web9").exit_code == 0
        assert run("balancer", "apply", "lb.toml", "--yes").exit_code == 0
        with Balancer.existing() as balancer:
            with pytest.raises(BusyError, match="revision 3 in force, these are of 2"):
                balancer.apply(slow)
            with pytest.raises(ConfigError, match=r"to be taken from ids\.db, and were not"):
                balancer.apply(read_file("lb.toml"))
            assert balancer.spec.pool["web"].backends["web1"].server_id
