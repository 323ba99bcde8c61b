"""UDP flows: each stays with the process that answered it first."""

from __future__ import annotations

import pytest

from sockway.lab.scenario import Scenario
from tests.release.experiments import UDP, assert_nothing_lost, explain, play

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

FLOWS = 12_000


def test_twelve_thousand_flows_stay_put() -> None:
    """12,000 live flows keep their owner across three publishes, and none loses a datagram."""
    scenario = Scenario(
        system="sockway",
        program="echo",
        load={
            "udp": {"targets": UDP, "flows": FLOWS, "rate": 4000},
            # Among them flows that come and go: they meet the new generations.
            "udp:young": {
                "targets": [["::1", 4433]],
                "flows": 200,
                "rate": 400,
                "life": 4,
                "first_source": 2000,
            },
        },
        releases=3,
        every=4.0,
        # All flows are there before the first release, and are heard of after the last.
        lead=6.0,
        linger=60.0,
        wait=False,
    )
    result = play(scenario)
    assert_nothing_lost(result)
    assert result.tallies["udp"].answered_by == {"1": FLOWS}, explain(result)
    assert result.tallies["udp"].requests > 3 * FLOWS, explain(result)
    assert set(result.tallies["udp:young"].answered_by) == {"1", "2", "3", "4"}, explain(result)
