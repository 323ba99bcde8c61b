"""Who accepts on a TCP VIP: one process, and none that does not serve."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sockway.kernel import Netns
from tests.takeover.echoes import says

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[[int], subprocess.Popen[str]]


@pytest.fixture(params=["asyncio", "uvloop"])
def start(netns: Netns, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a generation that has opened its TCP VIP, and does not serve."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    with ExitStack() as stack:

        def start(generation: int) -> subprocess.Popen[str]:
            env = os.environ | {
                "TAKEOVER_LISTEN": "tcp://127.0.0.1:8080 udp://127.0.0.1:4433?flow=tuple",
                "TAKEOVER_DIRECTORY": str(tmp_path),
                "SOCKWAY_GENERATION": str(generation),
                "SOCKWAY_WORKER": "0",
                "LOOP": request.param,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            }
            process = netns.run(
                lambda: subprocess.Popen(
                    [sys.executable, "-m", "sockway.takeover.run", "-m", "tests.takeover.early"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=env,
                    text=True,
                )
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert says(process) == "open"
            return process

        yield start


def _serve(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert says(process) == "takeover: serving"


def _who(netns: Netns) -> set[int]:
    """Who answers some connections; each has to be answered."""

    def ask() -> int:
        with socket.create_connection(("127.0.0.1", 8080), timeout=3) as sock:
            return int(sock.recv(100))

    return {netns.run(ask) for _ in range(60)}


def test_a_process_that_does_not_serve_accepts_nothing(netns: Netns, start: Start) -> None:
    """It has opened the VIP, and is not ready for another: its end costs no connection."""
    first = start(1)
    with pytest.raises(ConnectionRefusedError):
        _who(netns)
    _serve(first)
    assert _who(netns) == {1}
    second = start(2)
    assert _who(netns) == {1}
    second.kill()
    second.wait()
    assert _who(netns) == {1}


def test_accepting_goes_to_the_new_process_and_back(netns: Netns, start: Start) -> None:
    """The old one's server is not ended by that: it accepts again when the new one is dead."""
    first = start(1)
    _serve(first)
    for generation in (3, 4):
        second = start(generation)
        _serve(second)
        assert _who(netns) == {generation}
        second.kill()
        second.wait()
        assert _who(netns) == {1}
    assert first.poll() is None
