"""What is said of releases follows the figures, for the demo and for the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from sockway.lab import release, report
from sockway.lab.demo import Demo
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings, Metric
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


def test_the_note_follows_what_was_run() -> None:
    """Workers, lingers and counts of the scenarios; who was held up; what n is."""
    words = release.note(_outcome(ALL_SYSTEMS), {})
    assert "HTTP/1.1: 2 workers, one release, old ones end when they have answered" in words
    assert "UDP flows: 2 workers, one release, old ones stay for 3 s" in words
    assert "at their limit" in words
    assert "of one release, so nothing is known of their spread" in words
    assert "old flow" not in words
    outcome = _outcome(ALL_SYSTEMS)
    part = outcome.results["udp", "takeover"]
    part.scenario = replace(part.scenario, workers=5, linger=1.25, releases=3)
    part = outcome.results["udp", "sockway"]
    part.scenario = replace(part.scenario, workers=5, linger=1.25, releases=3)
    part.tallies["udp"].skipped = 100
    for part in outcome.results.values():
        part.cpu_of_releases = [1.0, 2.0]
    words = release.note(outcome, {"sockway": outcome.results["udp", "sockway"]})
    assert "UDP flows: 5 workers, 3 releases, old ones stay for 1.25 s" in words
    assert "UDP flows with Sockway (50%)" in words
    assert "at their limit" not in words
    assert "the median of all releases of a load" in words
    assert "measured over one release of each system" in words


def test_what_is_offered_is_held_against_what_was_sent() -> None:
    """Both rates, of each load; HTTP/3's has live connections, too."""
    outcome = _outcome(ALL_SYSTEMS)
    outcome.results["udp", "sockway"].tallies["udp"].skipped = 25
    figures = report.metrics(outcome, "sockway")
    assert figures["udp_offered_rate"]["value"] == 4000
    assert figures["udp_achieved_rate"]["value"] == pytest.approx(3200)
    assert figures["http3_offered_rate"]["value"] == pytest.approx(8 + 12 / 0.2)
    assert figures["http1_achieved_rate"]["value"] == figures["http1_offered_rate"]["value"] == 700


def test_figures_of_both_parts_are_added_by_what_they_count() -> None:
    """Losses are of datagrams, resets of requests; what was sent is one count, of both."""

    def count(value: float, n: int) -> Metric:
        return Metric.count(value, "", n)

    one = Findings(systems={
        "sockway": {
            "set_udp_sent": count(1000, 1), "set_udp_failed": count(3, 1000),
            "set_udp_lost": count(2, 1000), "set_udp_misrouted": count(1, 1000),
            "set_udp_resets": count(0, 1000), "set_tcp_sent": count(200, 1),
            "set_tcp_failed": count(4, 200), "set_tcp_lost": count(0, 200),
            "set_tcp_misrouted": count(0, 200), "set_tcp_resets": count(4, 200),
            "set_forwarded": count(50, 1000),
        },
        "single-acceptor": {"set_udp_sent": count(500, 1), "set_udp_lost": count(9, 500)},
    })  # fmt: skip
    other = Findings(systems={
        "sockway": {
            "sent": count(70, 1), "failed": count(5, 70), "lost": count(0, 0),
            "misrouted": count(0, 0), "resets": count(5, 70), "forwarded": count(8, 70),
        },
    })  # fmt: skip
    systems = release.together(one, other).systems
    told = {name: (m.value, m.unit, m.n) for name, m in systems["sockway"].items()}
    expected = {
        "sent": (1270, "requests and datagrams", 1),
        "failed": (12, "requests and datagrams", 1270),
        "lost": (2, "datagrams", 1000),
        "misrouted": (1, "datagrams", 1000),
        "resets": (9, "requests", 270),
        "forwarded": (58, "packets", 1070),
    }
    assert {name: told[name] for name in expected} == expected
    assert systems["single-acceptor"]["lost"].value == 9
    assert "resets" not in systems["single-acceptor"]
