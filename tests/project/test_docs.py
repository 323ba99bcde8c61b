"""The documents say what is so: their examples run, their links lead somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sockway.balancer import read as read_balancer
from sockway.balancer.config import parse
from sockway.balancer.host import HostSpec
from sockway.balancer.stamping import StampingSpec
from sockway.lab.topology import Topology
from sockway.serve.config import read_file
from tests.project.documents import (
    ROOT,
    examples,
    links,
    missing,
    pages,
    pages_with,
    program,
    session,
)

if TYPE_CHECKING:
    from sockway.kernel import Netns

LIMIT = 90.0
"""Seconds for all examples of a page."""

PRELUDE = """set -euo pipefail
trap 'kill $(jobs -p) 2>/dev/null || true; wait; sockway lab down >/dev/null 2>&1 || true' EXIT
"""


def run(command: list[str], namespace: Netns, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a network namespace, with this environment's commands on its PATH."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "PATH": path, "SOCKWAY_RUNTIME": str(directory / "run")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    return namespace.run(start)


@pytest.mark.parametrize("page", pages(), ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link of a page within the project names a file that is there."""
    here = (ROOT / page).parent
    assert [target for target in links(page) if not (here / target).exists()] == []


@pytest.mark.root
@pytest.mark.parametrize("page", pages_with("python"), ids=str)
def test_python_examples_run(page: Path, netns: Netns, bpffs_root: Path, tmp_path: Path) -> None:
    """The Python of a page runs as it stands."""
    assert bpffs_root.is_dir()
    script = tmp_path / "example.py"
    script.write_text(program(page), encoding="utf-8")
    done = run([sys.executable, "-W", "error", str(script)], netns, tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.root
@pytest.mark.parametrize("page", pages_with("console"), ids=str)
def test_console_examples_run(page: Path, netns: Netns, bpffs_root: Path, tmp_path: Path) -> None:
    """The commands of a page work and print what the page shows."""
    assert bpffs_root.is_dir()
    for example in (ROOT / "examples").glob("*.py"):
        (tmp_path / example.name).write_bytes(example.read_bytes())
    commands, expected = session(page)
    done = run(["bash", "-c", PRELUDE + commands], netns, tmp_path)
    assert done.returncode == 0, done.stdout
    assert missing(expected, done.stdout) == [], done.stdout


def test_the_reference_is_what_the_code_says() -> None:
    """`make docs` would change nothing."""
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name
)
def test_example_configurations_are_valid(path: Path) -> None:
    """`sockway serve` takes every configuration of the examples."""
    assert read_file(path).command


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (page, kind)
        for kind in ("balancer", "backend", "stamping", "lab")
        for page in pages_with("toml", kind)
    ],
    ids=str,
)
def test_configurations_of_pages_are_valid(page: Path, kind: str) -> None:
    """`sockway balancer`, `backend`, `stamp` and `lab` take those that the pages show."""
    for example in examples(page, "toml", kind):
        if kind == "balancer":
            assert read_balancer(example.body, str(page)).pool
        elif kind == "lab":
            topology = parse(Topology, example.body, str(page))
            topology.check()
        elif kind == "stamping":
            assert parse(StampingSpec, example.body, str(page)).peers
        else:
            assert parse(HostSpec, example.body, str(page)).vips


@pytest.mark.parametrize("page", pages_with("toml", "serve"), ids=str)
def test_services_of_pages_are_valid(page: Path, tmp_path: Path) -> None:
    """`sockway serve --config` takes those that the pages show; keys are where they say."""
    for number, example in enumerate(examples(page, "toml", "serve")):
        key = tmp_path / "quic-lb.key"
        key.write_text("00" * 16, encoding="ascii")
        key.chmod(0o600)
        file = tmp_path / f"{number}.toml"
        body = example.body.replace("/etc/sockway/", f"{tmp_path}/")
        file.write_text(body, encoding="utf-8")
        assert read_file(file).command


def test_the_check_of_examples_can_fail() -> None:
    """Lines that are absent or out of order are found missing."""
    output = "one\nserving web: 2 workers\nthree\n"
    assert missing(["serving ...: 2 workers", "three"], output) == []
    assert missing(["three", "one"], output) == ["one"]
    assert missing(["two"], output) == ["two"]


def test_the_readme_shows_the_library() -> None:
    """There is at least one example to run: the reader of pages has not gone blind."""
    assert examples(Path("README.md"), "python")
