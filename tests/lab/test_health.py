"""Backends that fail are taken out, and brought back; checked through the tunnel, as clients go."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sockway.lab.fleet import POOL, VIPS, Fleet
from sockway.lab.network import Node
from tests.lab.fleets import agent_of, ask, balancer, fleet_up, toml_of

pytestmark = pytest.mark.root

FAST = {"interval": 0.1, "timeout": 0.5, "rise": 2, "fall": 2}
PATIENCE = 15.0


@pytest.fixture(autouse=True)
def places(bpffs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins and notes of the test go where the test's own are."""
    del bpffs_root
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path / "run"))


def states(node: Node) -> dict[str, str]:
    """Of all backends."""
    return {each.name: each.state for each in balancer(node, "status")[POOL]}


def until(node: Node, wanted: dict[str, str]) -> None:
    """Wait for these states."""
    deadline = time.monotonic() + PATIENCE
    while (found := states(node)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def signal_all(node: Node, number: int) -> None:
    """To the processes of a host."""
    for pid in node.processes:
        os.kill(pid, number)


UP = {"backend1": "up", "backend2": "up", "backend3": "up"}

CHECKS: list[dict[str, Any]] = [
    {"type": "tcp"},
    {"type": "http", "path": "/health", "expect": "^backend"},
    {"type": "udp", "send": "who\n", "expect": "^backend. who"},
    {"type": "quic", "port": 443},
]


@pytest.mark.parametrize("check", CHECKS, ids=[check["type"] for check in CHECKS])
def test_each_kind_of_check_finds_who_hangs(check: dict[str, Any], tmp_path: Path) -> None:
    """A server that is stopped, with its port open still, is out; when it goes on, it is back."""
    settings = {"http3": check["type"] == "quic", "health": check | FAST, "encapsulation": "gue"}
    with fleet_up(settings, balancers=1) as fleet:
        node, victim = fleet.lab.node("balancer1"), fleet.lab.node("backend2")
        _with_agent(fleet, tmp_path, lambda: _stop_and_go_on(node, victim, check["type"]))


def _stop_and_go_on(node: Node, victim: Node, kind: str) -> None:
    until(node, UP)
    time.sleep(0.5)
    assert states(node) == UP
    if kind == "tcp":
        # A kernel accepts for a process that is stopped: for this one the host has to go.
        victim.set_link(up=False)
        until(node, UP | {"backend2": "failing"})
        return
    signal_all(victim, signal.SIGSTOP)
    until(node, UP | {"backend2": "failing"})
    signal_all(victim, signal.SIGCONT)
    until(node, UP)


@pytest.mark.parametrize("encapsulation", ["ip", "gue"])
@pytest.mark.parametrize("tunnel", [4, 6])
def test_checks_go_through_each_tunnel(encapsulation: str, tunnel: int, tmp_path: Path) -> None:
    """And clients get none of a backend that fails."""
    health = {"type": "http", **FAST}
    settings = {"http3": False, "health": health, "encapsulation": encapsulation, "tunnel": tunnel}
    with fleet_up(settings, balancers=1) as fleet:
        node, client = fleet.lab.node("balancer1"), fleet.lab.node("client1")

        def trial() -> None:
            until(node, UP)
            before = fleet.lab.node("backend1").run(_decapsulated)
            deadline = time.monotonic() + PATIENCE
            while fleet.lab.node("backend1").run(_decapsulated) <= before:
                assert time.monotonic() < deadline, "no check comes through the tunnel"
                time.sleep(0.05)
            signal_all(fleet.lab.node("backend1"), signal.SIGKILL)
            until(node, UP | {"backend1": "failing"})
            answers = ask(client, VIPS[0], 30, socket.SOCK_STREAM)
            assert set(answers) == {"backend2", "backend3"}

        _with_agent(fleet, tmp_path, trial)


def test_no_more_are_taken_out_than_the_pool_can_bear(tmp_path: Path) -> None:
    """All fail: half of them stay in, for the check may be what is wrong."""
    with fleet_up({"http3": False, "health": {"type": "http", **FAST}}, balancers=1) as fleet:
        node = fleet.lab.node("balancer1")

        def trial() -> None:
            until(node, UP)
            for backend in fleet.lab.of("backend"):
                signal_all(backend, signal.SIGSTOP)
            deadline = time.monotonic() + 3
            while time.monotonic() < deadline:
                found = list(states(node).values())
                assert found.count("failing") <= 1
                time.sleep(0.1)
            assert found.count("failing") == 1
            for backend in fleet.lab.of("backend"):
                signal_all(backend, signal.SIGCONT)
            until(node, UP)

        _with_agent(fleet, tmp_path, trial)


def test_what_fails_stays_out_when_the_agent_is_gone(tmp_path: Path) -> None:
    """The next one begins with what was found, and takes it back in when it works."""
    with fleet_up({"http3": False, "health": {"type": "http", **FAST}}, balancers=1) as fleet:
        node, victim = fleet.lab.node("balancer1"), fleet.lab.node("backend3")
        out = UP | {"backend3": "failing"}

        def fail() -> None:
            until(node, UP)
            signal_all(victim, signal.SIGSTOP)
            until(node, out)

        _with_agent(fleet, tmp_path, fail)
        assert states(node) == out

        def recover() -> None:
            assert states(node) == out
            signal_all(victim, signal.SIGCONT)
            until(node, UP)

        _with_agent(fleet, tmp_path, recover)


def _decapsulated() -> int:
    from sockway.balancer.host import Host  # noqa: PLC0415

    return Host.existing().counters()["decapsulated"]


def _with_agent(fleet: Fleet, directory: Path, trial: Callable[[], None]) -> None:
    """Run a trial while the agent of the balancer runs."""
    file = directory / "balancer.toml"
    file.write_text(toml_of(fleet), encoding="utf-8")
    agent = agent_of(fleet.lab.node("balancer1"), file)
    try:
        trial()
    finally:
        agent.kill()
        said, _ = agent.communicate()
        print(said)  # noqa: T201 - what a failure is explained by
    assert "refresh_failed" not in said
    assert "no_health_checks" not in said
