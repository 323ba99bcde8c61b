"""Real HTTP servers, twenty releases each, under clients of both habits."""

from __future__ import annotations

import pytest

from sockway.lab.scenario import Scenario
from tests.release.experiments import assert_nothing_lost, explain, http1, keepalive, play

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

RELEASES = 20


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian", "gunicorn", "nginx"])
def test_twenty_releases_fail_no_request(server: str) -> None:
    """Neither a new connection for each request nor a kept one sees any of 20 releases."""
    scenario = Scenario(
        system="sockway",
        program=server,
        load={"http1": http1(150), "http1:keepalive": keepalive(100)},
        releases=RELEASES,
        every=1.0,
        lead=1.0,
        linger=3.0,
        wait=False,
    )
    result = play(scenario)
    assert_nothing_lost(result)
    # Generation after generation has answered, by number or by process.
    assert len(result.tallies["http1"].answered_by) > RELEASES, explain(result)
    assert result.total.requests > RELEASES * 100, explain(result)
