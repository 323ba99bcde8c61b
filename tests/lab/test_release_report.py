"""What is said of releases follows the figures, for the demo and for the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from sockway.lab import release, report
from sockway.lab.demo import Demo
from sockway.lab.experiments import Setting
from sockway.lab.plot import write_plot
from sockway.lab.scenario import Result
from sockway.lab.suite import ALL_SYSTEMS, KINDS, SYSTEMS, Kind, Outcome
from sockway.lab.tally import Outcome as Ending
from sockway.lab.tally import Tally


def _result(system: str, kind: Kind, *, lost: int, cost: float) -> Result:
    """100 answers of 1 to 2 ms, some losses, and so many microseconds of CPU for each of 1,000."""
    tally = Tally()
    for number in range(100):
        tally.add(Ending.OK, 2.0, 0.001 + number / 1e5)
    for _ in range(lost):
        tally.add(Ending.MISROUTED, 2.5)
    result = Result(kind.scenario(system, 1), {next(iter(kind.load)): tally})
    result.releases, result.seconds, result.cpu_of_releases = [(1.5, 6.0)], 8.0, [1.25]
    result.samples = [(3.5, 1.0, 100), (5.0, 1.0 + cost / 1000, 1100), (9.0, 99.0, 2000)]
    result.decisions = {"forwarded": 40, "received": 40, "dropped": 0}
    return result


def _outcome(systems: tuple[str, ...]) -> Outcome:
    lost = {"sockway": 0, "reuseport": 7, "takeover": 0}
    cells = [(kind, system) for kind in KINDS for system in systems]
    return Outcome(
        {(k.key, s): _result(s, k, lost=lost[s], cost=30) for k, s in cells}, seconds=60.0
    )


@pytest.mark.parametrize("systems", [SYSTEMS, ALL_SYSTEMS])
def test_the_demo_shows_the_systems_that_were_tried(
    systems: tuple[str, ...], tmp_path: Path
) -> None:
    """Table, JSON and picture: takeover is in all of them, or in none."""
    outcome = _outcome(systems)
    console = Console(width=140)
    with console.capture() as shown:
        console.print(report.table(outcome))
    figures = report.figures(outcome, Demo(systems=systems).command)["experiments"]["release"]
    words = "sockway lab release --releases 3"
    assert figures["command"] == (f"{words} --takeover" if systems == ALL_SYSTEMS else words)
    assert figures["systems"].keys() == set(systems)
    write_plot(outcome, tmp_path)
    svg = (tmp_path / "release.svg").read_text()
    tried = "takeover" in systems
    assert ("socket takeover" in shown.get()) == tried
    assert ("released by socket takeover" in svg) == tried
    for system in systems:
        found = figures["systems"][system]
        failed = 3 * 7 if system == "reuseport" else 0
        assert found["misrouted"]["value"] == found["failed"]["value"] == failed
        assert found["cpu_of_a_release"] == {"value": 1.25, "unit": "s", "n": 3}
        assert found["udp_p50"]["value"] == pytest.approx(0.0015, rel=0.03)
        assert found["udp_p999"]["value"] == pytest.approx(0.002, rel=0.03)
        assert found["udp_cpu_per_request"]["value"] == pytest.approx(30e-6)
        assert ("forwarded" in found) == (system == "takeover")


def test_sentences_of_releases_follow_the_figures(tmp_path: Path) -> None:
    """Other figures, other words."""
    aged = {
        system: _result(system, KINDS[-1], lost=0, cost=cost)
        for system, cost in (("takeover", 45), ("sockway", 30))
    }
    with Progress(disable=True) as progress:
        setting = Setting(tmp_path, quick=True, seed=1, progress=progress)
        found = release.found(_outcome(ALL_SYSTEMS), aged, setting)
    assert {plot.name for plot in found.plots} == {path.stem for path in tmp_path.glob("*.svg")}
    told = {plot.name: plot.sentence for plot in found.plots}
    assert "SO_REUSEPORT 7 of 107" in told["release-udp"]
    assert "socket takeover 0 of 100" in told["release-udp"]
    assert "45 µs with socket takeover, which forwarded 40" in told["release-cost"]
    assert "1.5 times as much" in told["release-cost"]
    assert found.systems["takeover"]["aged_cpu_per_datagram"].value == pytest.approx(45e-6)
