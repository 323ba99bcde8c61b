"""What is said of a set of servers follows what its clients counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.progress import Progress

from sockway.lab import server_set_report
from sockway.lab.experiments import Setting
from sockway.lab.server_set import Protocol, SetCourse, SetPlan, Window
from sockway.lab.tally import Outcome, Tally

PLAN = SetPlan(servers=4, shares=(0.0, 0.5, 1.0), rounds=1)


def _course(system: str, *, misrouted: int, resets: int) -> SetCourse:
    """Three releases of ten seconds, 1,000 answers each; the last two have failures, too."""
    windows = [
        Window(share, round(share * 4), 10.0 * number, 10.0 * number + 10, 1.0 + 2 * share)
        for number, share in enumerate(PLAN.shares)
    ]
    tallies: dict[Protocol, Tally] = {"udp": Tally(), "tcp": Tally()}
    for number in range(3):
        for _ in range(1000):
            tallies["udp"].add(Outcome.OK, 10.0 * number + 5)
            tallies["tcp"].add(Outcome.OK, 10.0 * number + 5)
        for _ in range(number * misrouted):
            tallies["udp"].add(Outcome.MISROUTED, 10.0 * number + 9.85)
        for _ in range(number * resets):
            tallies["tcp"].add(Outcome.RESET, 10.0 * number)
    # Before the first and after the last: nobody's.
    for when in (-5.0, 31.0):
        tallies["udp"].add(Outcome.LOST, when)
    return SetCourse(system, PLAN, windows, tallies)


def test_what_fails_belongs_to_its_release() -> None:
    """Counts of a window are those of its time, and no others."""
    course = _course("reuseport", misrouted=30, resets=2)
    seen = [course.seen(window, "udp") for window in course.windows]
    assert [(each.sent, each.failed, each.lost) for each in seen] == [
        (1000, 0, 0), (1030, 30, 0), (1060, 60, 0),
    ]  # fmt: skip
    assert [course.seen(window, "tcp").resets for window in course.windows] == [0, 2, 4]
    # Serving takes a tenth of a second a second; the rest is the releases'.
    assert course.cpu_of_a_release() == pytest.approx([0.5, 0.5])


def test_sentences_and_figures_of_a_set(tmp_path: Path) -> None:
    """Other counts, other words."""
    courses = {
        "reuseport": _course("reuseport", misrouted=30, resets=2),
        "sockway": _course("sockway", misrouted=0, resets=0),
    }
    with Progress(disable=True) as progress:
        found = server_set_report.found(courses, Setting(tmp_path, True, 1, progress))
    assert {plot.name for plot in found.plots} == {path.stem for path in tmp_path.glob("*.svg")}
    udp, tcp = (plot.sentence for plot in found.plots)
    assert "100% of 4 servers" in udp
    assert "SO_REUSEPORT 60 of 1,060 (5.7%), Sockway 0 of 1,000." in udp
    assert "SO_REUSEPORT 4 of 1,004 (0.4%), Sockway 0 of 1,000." in tcp
    figures = found.systems["reuseport"]
    assert figures["set_udp_misrouted"].value == 90
    assert figures["set_udp_misrouted"].n == figures["set_udp_sent"].value == 3090
    assert figures["set_udp_failed_50"].value == 30
    assert figures["set_tcp_resets"].value == 6
    # Of all windows: one, two and three seconds of CPU time.
    assert figures["cpu_per_packet"].value == pytest.approx(6 / (3090 + 3006))
    assert found.tables[0].rows[0] == [
        "UDP", "SO_REUSEPORT", "0", "30", "60", "0", "90", "0", "3,090",
    ]  # fmt: skip
