"""`sockway lab release` and `sockway demo`: what can't be done is one clear error, in JSON too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sockway.cli import app
from sockway.lab import demo
from sockway.lab.demo import Demo
from sockway.lab.report import figures
from sockway.lab.suite import ALL_SYSTEMS, KINDS, Outcome

COMMANDS = (["lab", "release"], ["demo"])


@pytest.mark.parametrize("command", COMMANDS)
def test_what_can_not_be_done(command: list[str], tmp_path: Path) -> None:
    """Before anything is released."""
    file = tmp_path / "file"
    file.touch()
    for arguments, words in (
        (["--output", str(file)], f"can't write to {file}: File exists"),
        (["--load", "http9"], "there is no load http9"),
        (["--system", "magic"], "there is no system 'magic'"),
    ):
        done = CliRunner().invoke(app, [*command, *arguments, "--json"])
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith(f"sockway: error: {words}\n  hint: ")
        assert json.loads(done.stdout)["error"] == words


@pytest.mark.parametrize("command", COMMANDS)
def test_json(command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The figures alone on standard output; what was lost is in the exit status, too."""
    tried: list[Demo] = []

    def run(self: Demo, output: Path, *, show_on_stderr: bool) -> tuple[dict[str, Any], bool]:
        assert (output, show_on_stderr) == (tmp_path, True)
        tried.append(self)
        return figures(Outcome({}, 1.0), self.command), False

    monkeypatch.setattr(demo.Demo, "run", run)
    done = CliRunner().invoke(
        app, [*command, "--json", "--takeover", "--load", "udp", "--output", str(tmp_path)]
    )
    assert done.exit_code == 1
    assert json.loads(done.stdout)["experiments"]["release"]["command"] == (
        "sockway lab release --releases 3 --takeover --load udp"
    )
    assert (tried[0].systems, [kind.key for kind in tried[0].kinds]) == (ALL_SYSTEMS, ["udp"])


@pytest.mark.parametrize(
    "wanted", [Demo(), Demo(7, KINDS[:2], ("takeover",)), Demo(20, KINDS, ALL_SYSTEMS)]
)
def test_the_command_repeats_it(wanted: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was chosen is chosen again by it."""
    words = wanted.command.split()
    assert words[:3] == ["sockway", "lab", "release"]
    again: list[Demo] = []

    def run(self: Demo, *_: object, **__: object) -> tuple[dict[str, Any], bool]:
        again.append(self)
        return {}, True

    monkeypatch.setattr(demo.Demo, "run", run)
    assert CliRunner().invoke(app, words[1:]).exit_code == 0
    assert again == [wanted]


@pytest.mark.root
def test_a_run(tmp_path: Path) -> None:
    """Of one system, one load: standard output is the figures that are in the file."""
    done = subprocess.run(
        [sys.executable, "-m", "sockway", "demo", "--json", "--releases", "1", "--load", "udp",
         "--system", "sockway", "--output", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "release.json").read_text())
    assert "Releases under load" in done.stderr
