"""HTTP/3 on hypercorn with several workers, which by itself can't even shake hands there."""

from __future__ import annotations

import pytest

from sockway.lab.scenario import Scenario
from tests.release.experiments import assert_nothing_lost, explain, play

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def test_handshakes_complete_and_live_connections_outlast_releases() -> None:
    """Every handshake completes, and connections with requests under way outlast two releases."""
    task = {"target": ["::1", 8443], "rate": 6, "timeout": 8}
    scenario = Scenario(
        system="sockway",
        program="http3",
        load={
            "http3": task | {"live": 6, "life": 7, "pause": 0.3},
            # A stream that is open all the time: 60 kB in 2 s, then the next.
            "http3:streams": task
            | {"rate": 0, "live": 4, "life": 7, "pause": 0, "live_path": "/bytes/60000?seconds=2"},
        },
        releases=3,
        every=3.0,
        lead=5.0,
        workers=3,
        linger=12.0,
        wait=False,
    )
    result = play(scenario)
    assert_nothing_lost(result)
    assert set(result.tallies["http3"].answered_by) >= {"1", "2", "3", "4"}, explain(result)
    assert result.tallies["http3:streams"].requests > 20, explain(result)
