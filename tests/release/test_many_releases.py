"""A light server: releases in a row, a crowd of connections, long downloads."""

from __future__ import annotations

import pytest

from sockway.lab.scenario import Scenario
from tests.release.experiments import assert_nothing_lost, downloads, http1, keepalive, play

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def test_fifty_releases_in_a_row() -> None:
    """Fifty releases under short requests lose none, and each generation gets its share."""
    scenario = Scenario(
        system="sockway",
        program="tiny",
        load={"http1": http1(300)},
        releases=50,
        every=0.8,
        lead=1.0,
        wait=False,
    )
    result = play(scenario)
    assert_nothing_lost(result)
    assert len(result.total.answered_by) == scenario.releases + 1


def test_thousands_of_connections_and_long_downloads() -> None:
    """2,000 kept connections and downloads of three seconds see nothing of five releases."""
    scenario = Scenario(
        system="sockway",
        program="tiny",
        load={
            "http1": http1(100),
            "http1:keepalive": keepalive(500, clients=2000),
            "http1:downloads": downloads(3.0, clients=20),
        },
        releases=5,
        every=3.0,
        lead=4.0,
        linger=15.0,
        wait=False,
    )
    result = play(scenario)
    assert_nothing_lost(result)
    assert result.tallies["http1:downloads"].requests > 20
