"""The same experiments without Sockway lose something: the clients can tell."""

from __future__ import annotations

from typing import Any

import pytest

from sockway.lab.scenario import Scenario
from sockway.lab.tally import Outcome
from tests.release.experiments import UDP, explain, http1, play

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def _released_by_reuseport(program: str, load: dict[str, dict[str, Any]], **more: Any) -> Scenario:
    return Scenario(system="reuseport", program=program, load=load, **more)


def test_reuseport_resets_connections() -> None:
    """Blue/green of uvicorn on SO_REUSEPORT fails requests."""
    load = {"http1": http1(400, clients=64)}
    result = play(_released_by_reuseport("uvicorn", load, releases=6, every=1.5))
    assert result.total.failed, explain(result)
    assert result.total.resets, explain(result)


def test_reuseport_misroutes_datagrams() -> None:
    """With a second group on the port most flows meet a process that does not know them."""
    load = {"udp": {"targets": UDP, "flows": 1000, "rate": 2000}}
    result = play(_released_by_reuseport("echo", load, releases=2, every=1.5, linger=1.0))
    assert result.total.outcomes[Outcome.MISROUTED] > 100, explain(result)


def test_reuseport_breaks_quic_connections() -> None:
    """Live HTTP/3 connections break when another process joins their port."""
    load = {"http3": {"target": ["::1", 8443], "rate": 4, "live": 8, "life": 4, "timeout": 3}}
    result = play(_released_by_reuseport("http3", load, releases=1, linger=3.0))
    assert result.total.failed, explain(result)
