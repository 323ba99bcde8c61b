"""Where network namespaces have no cookie, commands say so, and the doctor shows all its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sockway.kernel.features import probe_all

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Sockway in a process that has no SO_NETNS_COOKIE."""
    command = [sys.executable, "-m", "tests.kernel.seccomp", sys.executable, "-m", "sockway"]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )


@pytest.mark.root
def test_the_doctor_shows_every_row() -> None:
    """The row of the cookie is a no with its remedy; the others are what they are elsewhere."""
    done = run("doctor", "--json")
    assert done.returncode == 1, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    cookie = rows.pop("namespace cookie")
    assert not cookie["ok"]
    assert "fails with ENOPROTOOPT" in cookie["detail"]
    assert cookie["remedy"] == "Linux 5.14 or later"
    elsewhere = {feature.name: feature.ok for feature in probe_all()}
    assert {n: row["ok"] for n, row in rows.items() if n in elsewhere} == {
        name: ok for name, ok in elsewhere.items() if name != "namespace cookie"
    }
    shown = run("doctor")
    assert shown.returncode == 1
    assert "namespace cookie" in shown.stdout
    assert shown.stderr == ""


@pytest.mark.root
@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["status", "web"],
        ["release", "web"],
        ["remove", "web"],
        ["balancer", "status"],
        ["backend", "status"],
        ["serve", "--listen", "tcp://127.0.0.1:8080", "--", "true"],
    ],
    ids=" ".join,
)
def test_other_commands_end_with_one_clear_error(arguments: list[str]) -> None:
    """Status 5, what is missing and the way out; no traceback, and not `a bug`."""
    done = run(*arguments)
    assert done.returncode == 5, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("sockway: error: network namespaces have no cookie here")
    assert second.startswith("  hint: use Linux 5.14 or later")
