"""What a shell is offered: names of what is there; never an error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.serve.harness import VIP, Box

START = """
import os, sys
import sockway.cli.complete, sockway.cli.service, sockway.serve.takeover_state
from sockway.cli import main
sys.argv = ["sockway"]
if {without_rights}:  # what is imported by now need not be readable to them
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
main()
"""


def offered(line: str, box: Box, *, without_rights: bool = False) -> list[str]:
    """Return what bash would offer at the end of the line, called in the box."""
    environment = {
        **box.environment,
        "_SOCKWAY_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    command = [sys.executable, "-c", START.format(without_rights=without_rights)]

    def ask() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=30
        )

    done = box.netns.run(ask)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.root
def test_services_and_generations(box: Box) -> None:
    """Those that are pinned, as they are typed."""
    serve = box.serve("--listen", VIP).published(1)
    assert offered("sockway status ", box) == ["web"]
    assert offered("sockway release w", box) == ["web"]
    assert offered("sockway release x", box) == []
    assert offered("sockway drain web ", box) == ["1"]
    assert "balancer" in offered("sockway ba", box)
    assert serve.end() == 0


@pytest.mark.root
@pytest.mark.parametrize(
    "line",
    [
        "sockway status ", "sockway drain web ", "sockway balancer drain ",
        "sockway balancer status --name ", "sockway ids retire ",
    ],
)  # fmt: skip
def test_where_there_is_none(line: str, box: Box) -> None:
    """Nothing is offered, and nothing is said."""
    assert offered(line, box) == []


@pytest.mark.root
def test_without_permission(box: Box) -> None:
    """Somebody without rights is offered nothing, and gets no traceback."""
    serve = box.serve("--listen", VIP).published(1)
    assert offered("sockway drain web ", box) == ["1"]
    assert offered("sockway drain web ", box, without_rights=True) == []
    assert offered("sockway status ", box, without_rights=True) == []
    assert serve.end() == 0
