"""Socket takeover, the baseline, as good as it is said to be: each kind of load loses nothing."""

from __future__ import annotations

from typing import Any

import pytest

from sockway.lab.scenario import Result, Scenario
from tests.release.experiments import UDP, assert_nothing_lost, explain, http1, play

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def _taken_over(program: str, load: dict[str, dict[str, Any]], **more: Any) -> Result:
    result = play(Scenario(system="takeover", program=program, load=load, **more))
    assert_nothing_lost(result)
    assert not result.decisions["dropped"], explain(result)
    assert result.decisions["forwarded"] == result.decisions["received"], explain(result)
    return result


def test_tcp_loses_nothing_and_forwards_nothing() -> None:
    """Accepted by whoever is there: nothing is reset, and there is nothing to forward."""
    load = {"http1": http1(300, clients=32)}
    result = _taken_over("uvicorn", load, releases=2, every=1.5, lead=0.5)
    assert result.total.answered_by.keys() == {"1", "2", "3"}, explain(result)
    assert result.decisions["forwarded"] == 0


def test_quic_connections_of_the_old_process_are_forwarded_to_it() -> None:
    """Live HTTP/3 connections, and handshakes under way, outlast a release: by forwarding."""
    load = {"http3": {"target": ["::1", 8443], "rate": 8, "live": 8, "life": 2, "timeout": 3}}
    result = _taken_over("http3", load, releases=1, linger=3.5, lead=1.0)
    assert result.total.answered_by.keys() == {"1", "2"}, explain(result)
    assert result.decisions["forwarded"] > 20, explain(result)


def test_datagrams_of_old_flows_are_forwarded() -> None:
    """Flows that never end stay with the first process through two releases, which both forward."""
    load = {
        "udp": {"targets": UDP, "flows": 500, "rate": 1000},
        "udp:young": {"targets": UDP, "flows": 50, "rate": 200, "life": 4, "first_source": 2000},
    }
    result = _taken_over("echo", load, releases=2, every=1.5, lead=1.0, linger=60.0, wait=False)
    assert result.tallies["udp"].answered_by == {"1": 500}, explain(result)
    assert set(result.tallies["udp:young"].answered_by) == {"1", "2", "3"}, explain(result)
    assert result.decisions["forwarded"] > 1500, explain(result)
