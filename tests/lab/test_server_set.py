"""What is said of a set of servers follows what its clients counted."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.progress import Progress

from sockway.kernel import Netns
from sockway.lab import programs, server_set_report
from sockway.lab.experiments import Setting
from sockway.lab.releasers import SYSTEMS, Plan
from sockway.lab.server_set import ACCEPTOR, Protocol, SetCourse, SetPlan, Window
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
    # Before the first and after the last: nobody's. What began in the last one is of that.
    for when in (-5.0, 31.0):
        for _ in range(500):
            tallies["udp"].add(Outcome.OK, when)
    tallies["tcp"].add(Outcome.TIMEOUT, 31.0, began=29.0)
    tallies["tcp"].add(Outcome.TIMEOUT, 11.0, began=9.0)
    return SetCourse(
        system, PLAN, windows, tallies, calm=Window(0.0, 0, -5.55, -4.55, 0.25),
        forwarded=77 if system == "takeover" else None,
    )  # fmt: skip


def test_what_fails_belongs_to_its_release() -> None:
    """Counts of a window are those of its time, and no others."""
    course = _course("reuseport", misrouted=30, resets=2)
    seen = [course.seen(window, "udp") for window in course.windows]
    assert [(each.sent, each.failed, each.lost) for each in seen] == [
        (1000, 0, 0), (1030, 30, 0), (1060, 60, 0),
    ]  # fmt: skip
    assert [course.seen(window, "tcp").resets for window in course.windows] == [0, 2, 4]
    assert [course.seen(window, "tcp").failed for window in course.windows] == [1, 2, 5]
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
    assert "SO_REUSEPORT 5 of 1,005 (0.5%), Sockway 1 of 1,001 (0.1%)." in tcp
    figures = found.systems["reuseport"]
    assert figures["set_udp_misrouted"].value == 90
    assert figures["set_udp_misrouted"].n == figures["set_udp_sent"].value == 3090
    assert figures["set_udp_failed_50"].value == 30
    assert figures["set_tcp_resets"].value == 6
    # Of datagrams alone: a quarter of a second for 500 of them. The releases' is apart.
    assert figures["cpu_per_packet"].value == pytest.approx(0.25 / 500)
    assert figures["cpu_per_packet"].n == 500
    assert figures["set_cpu_of_a_release"].value == pytest.approx(0.5)
    words = found.notes[0]
    assert "without releases or HTTP: SO_REUSEPORT 500 µs, Sockway 500 µs." in words
    assert "Each share was released once, so nothing is known of the spread." in words
    assert "sent at least 100.0% of what was due" in words
    assert found.tables[0].rows[0] == [
        "UDP", "SO_REUSEPORT", "0", "30", "60", "0", "90", "0", "3,090",
    ]  # fmt: skip


def test_one_accepting_thread_has_datagrams_only(tmp_path: Path) -> None:
    """Its figures and its place in the plot of UDP; none in HTTP's."""
    one = _course(ACCEPTOR, misrouted=40, resets=0)
    del one.tallies["tcp"]
    courses = {ACCEPTOR: one, "sockway": _course("sockway", misrouted=0, resets=0)}
    with Progress(disable=True) as progress:
        found = server_set_report.found(courses, Setting(tmp_path, True, 1, progress))
    udp, tcp = (plot.sentence for plot in found.plots)
    assert "one accepting thread 80 of 1,080 (7.4%)" in udp
    assert "one accepting thread" not in tcp
    assert "set_tcp_sent" not in found.systems[ACCEPTOR]
    assert "2 workers that answer" in found.notes[0]
    assert [row[:2] for row in found.tables[1].rows] == [
        ["UDP", "one accepting thread"], ["UDP", "Sockway"], ["HTTP/1.1", "Sockway"],
    ]  # fmt: skip


def test_words_follow_the_plan_and_what_was_sent() -> None:
    """Clients that fell behind are told, and the plan's numbers are."""
    course = _course("takeover", misrouted=0, resets=0)
    course.tallies["udp"].skipped = 6090
    course.plan = replace(PLAN, rounds=3, linger=1.25)
    words = server_set_report.note({"takeover": course})
    assert "UDP with socket takeover (40%)" in words
    assert "at their limit" not in words
    assert "stay for up to 1.25 s" in words
    assert "median of 3 releases" in words
    assert "accepting" not in words


@pytest.mark.root
def test_an_accepting_process_is_restarted(netns: Netns, tmp_path: Path) -> None:
    """Workers answer, each flow its own; a new one has the port when the old one is gone."""

    async def released() -> list[str]:
        plan = Plan(programs.accepting(1), workers=2, directory=tmp_path, env=dict(os.environ))
        server = SYSTEMS[ACCEPTOR](plan)
        await server.start()
        answers = []
        with closing(_Flows(2)) as flows:
            for _ in range(2):
                answers += [await flows.ask(number) for number in (0, 1, 0, 1)]
                if len(answers) == 4:
                    await server.release()
        await server.stop()
        return answers

    answers = netns.run(lambda: asyncio.run(released()))
    assert answers[0:2] == answers[2:4]
    assert answers[4:6] == answers[6:8]
    assert len({answer.split()[0] for answer in answers}) == 4
    assert [answer.split()[1] for answer in answers] == ["1"] * 4 + ["2"] * 4


class _Flows:
    """Sockets that ask a server who it is."""

    def __init__(self, count: int) -> None:
        self.socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(count)]
        for sock in self.socks:
            sock.connect(("127.0.0.1", 4433))
            sock.setblocking(False)

    async def ask(self, number: int) -> str:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            await loop.sock_sendall(self.socks[number], b"who")
            return (await loop.sock_recv(self.socks[number], 100)).decode()

    def close(self) -> None:
        for sock in self.socks:
            sock.close()
