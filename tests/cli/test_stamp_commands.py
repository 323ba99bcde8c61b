"""`sockway stamp` as scripts see it."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import sockway.balancer.stampcheck
import sockway.fleet.telling  # noqa: F401 - not from root's directories, by somebody else
from sockway.cli import app
from sockway.kernel import Netns, cgroup

pytestmark = pytest.mark.root

Run = Callable[..., Result]


@pytest.fixture
def place() -> Iterator[Path]:
    """A cgroup of the test's own."""
    made = cgroup.mount() / f"sockway-{uuid.uuid4().hex[:8]}"
    made.mkdir()
    yield made
    made.rmdir()


@pytest.fixture
def run(
    netns: Netns, bpffs_root: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Runs a command in a namespace, where two files are."""
    del bpffs_root
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path / "run"))
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        monkeypatch.chdir(directory)
        text = f"""cgroup = "{place}"
peers = ["127.0.0.0/8", "10.0.0.0/8"]
server_kind = 0xB6
client_kind = 0xB7
"""
        both = text + "server_id = 17\nserver_ports = [7777]\nclient_ports = [7777]\n"
        Path("main.toml").write_text(both, encoding="utf-8")
        clients = text + 'name = "clients"\nclient_ports = [80, 443]\n'
        Path("clients.toml").write_text(clients, encoding="utf-8")
        yield lambda *words: netns.run(lambda: CliRunner().invoke(app, ["stamp", *words]))


def test_what_is_stamped_is_shown(run: Run, place: Path) -> None:
    """All of it by name, or one with all that it has."""
    assert "nothing is stamped" in run("status").output
    assert f"connections of {place} are stamped" in run("up", "main.toml").output
    assert run("up", "clients.toml").exit_code == 0
    found = json.loads(run("status", "--json").stdout)["stamps"]
    assert [(each["name"], each["server_id"]) for each in found] == [("clients", 0), ("main", 17)]
    assert found[0]["counters"]["told"] == 0
    table = run("status").output
    assert "80, 443 of others" in table
    assert table.count(str(place)) == 2
    shown = run("status", "--name", "main").output
    for words in (
        "server ID: 17", "ports: 7777 of this host; 7777 of others", f"cgroup: {place}",
        "peers: 10.0.0.0/8, 127.0.0.0/8", "kinds: 0xb6 from servers, 0xb7 from clients", "told",
    ):  # fmt: skip
        assert words in shown
    assert json.loads(run("status", "--name", "main", "--json").stdout)["client_kind"] == 0xB7
    for name in ("main", "clients"):
        assert run("down", "--name", name).exit_code == 0
    gone = run("status", "--name", "main")
    assert (gone.exit_code, "nothing is stamped by the name" in gone.stderr) == (3, True)


def test_a_check_says_how_options_look(run: Run, netns: Netns) -> None:
    """There is no kind that it could take by itself, and not two ways at once."""
    with netns.run(lambda: socket.create_server(("127.0.0.1", 7777))):
        done = run("check", "127.0.0.1:7777", "--config", "main.toml", "--timeout", "0.1", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["echoed"] is None
    for words, said in (
        ((), "--config FILE"),
        (("--config", "main.toml", "--profile", "katran"), "leave one out"),
        (("--profile", "katrn"), "there is: katran"),
    ):
        refused = run("check", "127.0.0.1:7777", *words)
        assert (refused.exit_code, said in refused.stderr) == (2, True)
    refused = run("check", "a..b:443", "--profile", "katran")
    assert (refused.exit_code, "can't resolve 'a..b'" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        ("up", "main.toml"),
        ("status",),
        ("status", "--name", "main"),
        ("down",),
        ("check", "127.0.0.1:7777", "--profile", "katran"),
    ],
    ids=" ".join,
)
def test_who_may_not_is_told_so(run: Run, words: tuple[str, ...]) -> None:
    """One error, as JSON too."""
    assert run("up", "main.toml").exit_code == 0
    os.seteuid(65534)
    try:
        # Not in the namespace, which takes a right as well.
        refused = CliRunner().invoke(app, ["stamp", *words, "--json"])
    finally:
        os.seteuid(0)
    assert run("down").exit_code == 0
    assert refused.exit_code == 5, refused.stderr
    assert json.loads(refused.stdout)["kind"] == "PermissionDenied"
    assert "permission denied" in refused.stderr
    assert "root" in refused.stderr
