"""What would lose connections by server IDs is refused, by commands and by agents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sockway.balancer import Balancer
from sockway.errors import StateError
from sockway.fleet import Registry, learn, read_resolved, report
from sockway.kernel import Netns
from tests.cli.test_ids_commands import CONFIG, Run, answer, ids, in_force, run

__all__ = ["ids", "run"]  # fixtures


def _lose_registry() -> None:
    for file in Path().glob("ids.db*"):
        file.unlink()


@pytest.mark.root
def test_a_new_registry_takes_no_id_from_a_balancer(run: Run, netns: Netns) -> None:
    """An agent goes on with those in force, and follows when all of them were taken in."""
    run("ids", "assign", "web1", "second")
    run("balancer", "apply", "lb.toml", "--yes")
    before = in_force(run, netns)
    _lose_registry()
    run("ids", "assign", "web9", "web8")  # another registry, of the same revision
    with netns.entered(), Balancer.existing() as balancer:
        with pytest.raises(StateError, match="is another registry") as raised:
            learn(balancer)
        assert "ids adopt --name main" in str(raised.value.hint)
        with pytest.raises(StateError, match="is of another registry"):
            report(balancer)
        assert in_force(run, netns) == before
        assert answer(run("ids", "balancers", "--json"))["balancers"] == []
        assert "taken in: second" in run("ids", "adopt").output
        assert learn(balancer) == 3
        assert learn(balancer) is None
    assert in_force(run, netns) == before
    assert answer(run("ids", "env", "web1", "--json"))["environment"] == {
        "SOCKWAY_SERVER_ID": str(before["web1"])
    }


@pytest.mark.root
def test_a_registry_with_other_ids_is_not_followed(run: Run, netns: Netns) -> None:
    """Nor one where they are in quarantine."""
    run("ids", "assign", "web1", "second")
    run("balancer", "apply", "lb.toml", "--yes")
    before = in_force(run, netns)
    _lose_registry()
    run("ids", "assign", "web1", "second")
    lost = "in the registry: its connections would be lost"
    with netns.entered(), Balancer.existing() as balancer, pytest.raises(StateError, match=lost):
        learn(balancer)
    _lose_registry()
    run("ids", "assign", "web1", "--id", str(before["web1"]))
    run("ids", "assign", "second", "--id", "5")
    run("ids", "retire", "second")
    run("ids", "configure", "--drain", "0")
    run("ids", "list")
    refused = run("balancer", "apply", "lb.toml", "--yes")
    assert "and none in the registry: its connections would be lost" in refused.stderr
    assert in_force(run, netns) == before


@pytest.mark.root
def test_names_that_are_lost_from_a_registry_keep_their_ids(run: Run, netns: Netns) -> None:
    """Unless another backend has them by now."""
    run("ids", "assign", "web1", "second")
    run("balancer", "apply", "lb.toml", "--yes")
    before = in_force(run, netns)
    with netns.entered(), Balancer.existing() as balancer:
        with Registry.open("ids.db") as registry:
            registry.rewrite(lambda work: work.drop(before["web1"]))
            registry.assign("web9", before["web2"] + 1)
        assert learn(balancer) == 3
        assert in_force(run, netns) == before


@pytest.mark.root
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('web1 = "10.0.0.11"\n', ""),
        ('web1 = "10.0.0.11"', 'web1 = { address = "10.0.0.11", server_id = 0 }'),
        ("stamps = true", "stamps = false"),
        ('registry = "ids.db"\nregistry_as = "lb1"\n', ""),
    ],
)
def test_an_id_that_is_told_is_not_dropped(run: Run, netns: Netns, old: str, new: str) -> None:
    """Its connections would be lost; once nobody tells it, it may go."""
    run("ids", "assign", "web1", "second")
    run("balancer", "apply", "lb.toml", "--yes")
    before = in_force(run, netns)
    run("ids", "env", "web1")
    changed = CONFIG.replace(old, new, 1)
    if "registry" in old:
        changed = changed.replace(', id_of = "second"', "")
    Path("new.toml").write_text(changed, encoding="utf-8")
    refused = run("balancer", "apply", "new.toml", "--yes")
    assert refused.exit_code == 1
    assert f"server ID {before['web1']} of web1 would lead nowhere at" in refused.stderr
    assert "quic main on" in refused.stderr
    assert in_force(run, netns) == before
    run("ids", "env", "web1", "--stop")
    applied = run("balancer", "apply", "new.toml", "--yes")
    assert applied.exit_code == 0, applied.output
    reports = answer(run("ids", "balancers", "--json"))["balancers"]
    assert not any("web1" in names for each in reports for names in each["carries"].values())
    assert bool(reports) == ("registry" not in old)  # it is waited for no more


@pytest.mark.root
def test_another_name_in_the_registry_takes_the_place_of_the_old_one(run: Run) -> None:
    """Nobody waits for a name that does not report any more."""
    run("ids", "assign", "web1", "second")
    run("balancer", "apply", "lb.toml", "--yes")
    Path("lb.toml").write_text(CONFIG.replace('"lb1"', '"lb2"'), encoding="utf-8")
    run("balancer", "apply", "lb.toml", "--yes")
    (known,) = answer(run("ids", "balancers", "--json"))["balancers"]
    assert known["balancer"] == "lb2"


@pytest.mark.root
def test_an_apply_that_fails_announces_nothing(run: Run) -> None:
    """A balancer that is not in force is not waited for."""
    run("ids", "assign", "web1", "second")
    bad = CONFIG.replace('"out0"', '"none0"')
    Path("bad.toml").write_text(bad, encoding="utf-8")
    assert run("balancer", "apply", "bad.toml", "--yes").exit_code != 0
    assert answer(run("ids", "balancers", "--json"))["balancers"] == []


@pytest.mark.root
def test_a_report_that_was_lost_is_made_up_for(run: Run, netns: Netns) -> None:
    """Also where the revision is the same."""
    run("ids", "assign", "web1", "second")
    run("balancer", "apply", "lb.toml", "--yes")
    with netns.entered(), Balancer.existing() as balancer:
        assert learn(balancer) is None
        with Registry.open("ids.db") as registry:
            registry.report("lb1", 2, {"udp://192.0.2.1:443": ("web1",)})
        assert run("ids", "env", "second").exit_code == 1
        assert learn(balancer) == 2
        assert run("ids", "env", "second").exit_code == 0


@pytest.mark.root
def test_a_registry_is_where_the_file_says(
    run: Run, netns: Netns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where whoever applies it happens to be."""
    run("ids", "assign", "web1", "second")
    monkeypatch.chdir("/")
    with netns.entered():
        spec = read_resolved(tmp_path / "lb.toml")
    assert spec.registry == tmp_path / "ids.db"
    assert spec.pool["web"].backends["web1"].server_id


def test_lengths_bind_ids_that_quic_carries(ids: Run, tmp_path: Path) -> None:
    """Also those written by hand; not those of pools for TCP alone."""
    ids("assign", "web1", "second")
    by_hand = CONFIG.replace("server_id = 0", "server_id = 70000").replace(
        "length = 3", "length = 2"
    )
    file = tmp_path / "lb.toml"
    file.write_text(by_hand.replace('registry = "ids.db"\nregistry_as = "lb1"\n', "")
                    .replace(', id_of = "second"', ""), encoding="utf-8")  # fmt: skip
    with pytest.raises(Exception, match="70000 of web3 does not fit into the 16 bits"):
        read_resolved(file)
    tcp = file.read_text(encoding="utf-8").replace("udp://", "tcp://")
    file.write_text(tcp + '[stamp]\nprofile = "katran"\n', encoding="utf-8")
    assert read_resolved(file).pool["web"].backends["web3"].server_id == 70000


@pytest.mark.parametrize("name", ["ids.db", "ids.db-wal", "./ids.db", ".", "", "/", "notes.txt"])
def test_an_export_destroys_nothing(ids: Run, name: str) -> None:
    """Neither the registry nor what else is there, and leaves nothing behind."""
    ids("assign", "web1")
    Path("notes.txt").write_text("mine", encoding="utf-8")
    before = sorted(Path().iterdir())
    refused = ids("export", name)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("sockway: error: ")
    assert Path("notes.txt").read_text(encoding="utf-8") == "mine"
    assert sorted(Path().iterdir()) == before
    assert "web1" in ids("list").output
    assert ids("export", "copy.json").exit_code == ids("export", "copy.json").exit_code == 0
    assert ids("export", "notes.txt", "--force").exit_code == 0


def test_a_registry_whose_bits_became_fewer_can_be_restored(ids: Run) -> None:
    """They bind new IDs only."""
    ids("assign", "web1", "--id", "70000")
    ids("configure", "--bits", "8")
    ids("export", "copy.json")
    assert ids("import", "copy.json", "--registry", "new.db").exit_code == 0


def test_names_with_brackets_are_shown(ids: Run) -> None:
    """They are words, not marks."""
    ids("assign", "web1")
    assert "[/x] has revision 1" in ids("report", "[/x]", "1").output
    assert "[/x]" in ids("balancers").output
    assert ids("env", "web1", "--as", "[/q]").exit_code == 0
    assert "quic [/q] on" in ids("list").output


def test_a_damaged_registry_is_one_error(ids: Run) -> None:
    """Whatever is spoiled."""
    ids("assign", *(f"web{number}" for number in range(60)))
    ids("report", "lb", "1")
    whole = Path("ids.db").read_bytes()
    ids("export", "copy.json")
    told = 0
    for at in range(100, len(whole), 331):
        spoiled = bytearray(whole)
        spoiled[at] ^= 0xFF
        Path("ids.db").write_bytes(spoiled)
        for side in Path().glob("ids.db-*"):
            side.unlink()
        result = ids("list", "--json")
        assert result.exit_code in {0, 1, 2, 3}, (at, result.output, result.exception)
        told += result.exit_code != 0
        json.loads(result.stdout)
    assert told > 5
