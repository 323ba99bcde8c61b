"""The experiment `scale`: systems answer, budgets bind, and the sentences follow the figures."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import get_args

import pytest
from rich.progress import Progress

from sockway.kernel import Netns
from sockway.lab import cpubudget, scale_report
from sockway.lab.cpubudget import Budget, budgets
from sockway.lab.experiments import Setting
from sockway.lab.findings import Findings
from sockway.lab.scale import capacity_by
from sockway.lab.scale_clients import Clients
from sockway.lab.scale_points import Point
from sockway.lab.scale_report import Circumstances, answered_sentence, cpu_sentence, note
from sockway.lab.scale_systems import PORT, Name, cpu_seconds, running

BY_KERNEL = Circumstances(full=3000, was_full=True, by_kernel=True)


@pytest.mark.root
@pytest.mark.parametrize("name", get_args(Name))
def test_each_system_answers_what_it_can(name: Name, netns: Netns, bpffs_root: Path) -> None:
    """With room enough nothing is lost, and no process is left."""
    del bpffs_root

    def answered() -> tuple[int, int, list[int]]:
        with running(name, 3, 0.5) as (system, _), closing(Clients()) as clients:
            clients.offer(500, 0.5)
            before = cpu_seconds(system)
            phase = clients.offer(500, 0.5)
            assert cpu_seconds(system) > before
            clients.settle(3.0)
            assert not clients.dropped()
            return phase.sent, clients.answered, system.pids

    sent, got, pids = netns.run(answered)
    assert got == sent > 200
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@contextmanager
def _late(delay: float) -> Iterator[None]:
    """Something that answers each datagram so many seconds late, on all of 127.0.0.0/8."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", PORT))
        sock.settimeout(2.0)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    data, peer = sock.recvfrom(2048)
                except TimeoutError:
                    return
                threading.Timer(delay, sock.sendto, (data, peer)).start()

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        over.set()
        thread.join()
        time.sleep(delay)


@pytest.mark.root
def test_answers_count_for_the_phase_of_their_question(netns: Netns) -> None:
    """Those to a warm-up are none of the load's, though they come meanwhile; late ones are."""

    def measured() -> tuple[int, int, int, int]:
        with _late(0.2), closing(Clients()) as clients:
            warm = clients.offer(200, 0.3)
            phase = clients.offer(100, 0.3)
            clients.settle(2.0)
            return warm.sent, phase.sent, phase.within, clients.answered

    warm, sent, within, answered = netns.run(measured)
    assert answered == sent
    assert warm > sent  # and many of those came in the second phase
    assert within > sent


@pytest.mark.root
def test_what_clients_have_no_room_for_is_told(netns: Netns) -> None:
    """A drop in their own buffers is no loss of the system's."""

    def dropped() -> tuple[int, int]:
        with closing(Clients()) as clients, socket.socket(type=socket.SOCK_DGRAM) as sender:
            place = next(iter(clients._socks.values())).getsockname()
            before = clients.dropped()
            for _ in range(20_000):
                sender.sendto(bytes(64), place)
            return before, clients.dropped()

    before, after = netns.run(dropped)
    assert before == 0
    assert 0 < after < 20_000


def test_what_a_buffer_takes_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A datagram that the kernel did not take was not sent."""
    with closing(Clients()) as clients:
        monkeypatch.setattr(clients, "_send", lambda: False)
        assert clients.offer(1000, 0.1).sent == 0


def _burn(budget: Budget, seconds: float) -> float:
    """CPU time that a process gets which wants all."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        budget.enter()
        end, began = time.monotonic() + seconds, time.process_time()
        while time.monotonic() < end:
            until = time.process_time() + 0.001
            while time.process_time() < until:
                pass
            budget.pace()
        os.write(writing, str(time.process_time() - began).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        used = float(pipe.read())
    os.waitpid(pid, 0)
    return used


@pytest.mark.root
@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_budget_binds(monkeypatch: pytest.MonkeyPatch, *, by_kernel: bool) -> None:
    """By the kernel, or by the process itself where the kernel can't."""
    if not by_kernel:
        monkeypatch.setattr(cpubudget, "_hierarchy", lambda: None)
    by_kernel = cpubudget._hierarchy() is not None
    with budgets(1, 0.1) as (budget,):
        group = budget.group
        assert (group is not None) == by_kernel
        assert 0.07 < _burn(budget, 2.0) / 2.0 < 0.14
    assert group is None or not group.exists()


@pytest.mark.parametrize("others", [True, False])
def test_the_controller_is_off_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, others: bool
) -> None:
    """Where this switched it on, unless somebody else has budgets by now."""
    (tmp_path / "cgroup.controllers").write_text("cpu io", encoding="ascii")
    control = tmp_path / "cgroup.subtree_control"
    control.write_text("io", encoding="ascii")

    def switch(unified: Path, word: str) -> None:
        words = {*(unified / control.name).read_text(encoding="ascii").split()} - {word[1:]}
        words |= {word[1:]} if word[0] == "+" else set()
        control.write_text(" ".join(sorted(words)), encoding="ascii")

    monkeypatch.setattr(cpubudget, "cgroup2_mount", lambda: tmp_path)
    monkeypatch.setattr(cpubudget, "_switch", switch)
    monkeypatch.setattr(cpubudget, "_limit", lambda *_: None)
    with budgets(2, 0.1) as made:
        assert control.read_text(encoding="ascii") == "cpu io"
        assert [budget.group for budget in made if budget.group and budget.group.is_dir()]
        if others:
            (tmp_path / "sockway-lab-other-cpu-0").mkdir()
    assert control.read_text(encoding="ascii") == ("cpu io" if others else "io")
    control.write_text("cpu io", encoding="ascii")
    with budgets(1, 0.1):
        pass
    assert control.read_text(encoding="ascii") == "cpu io"


def _point(
    factor: float, answered: int, *, sent: int | None = None, within: int | None = None,
    cpu: float = 0.01, dropped: int = 0,
) -> Point:  # fmt: skip
    due = int(1000 * factor)
    return Point(
        factor, due, due if sent is None else sent, answered,
        answered if within is None else within, 1.0, cpu, dropped,
    )  # fmt: skip


def _points(
    single: list[Point], kernel: list[Point], own: list[Point]
) -> dict[Name, list[list[Point]]]:
    return {"single-acceptor": [single], "reuseport": [kernel], "sockway": [own]}


def _found(points: dict[Name, list[list[Point]]], output: Path) -> Findings:
    with Progress(disable=True) as progress:
        return scale_report.found(points, BY_KERNEL, Setting(output, True, 1, progress))


def test_a_rate_has_no_answers_of_others() -> None:
    """Neither those to what was sent before, nor those for which there was no time."""
    assert _point(3, 2900, sent=3000, within=3500).rate == 2900
    late = _point(4, 4000, within=3000)
    assert late.lost == 0
    assert late.rate == 3000
    assert not late.taken
    assert _point(0, 0).lost == 0


def test_sentences_follow_the_figures(tmp_path: Path) -> None:
    """Other figures, other words; who reached no limit is told, and a generator that did."""
    points = _points(
        [_point(1, 1000), _point(3, 2900), _point(21, 3000, cpu=0.06)],
        [_point(1, 1000), _point(3, 3000), _point(21, 18_900)],
        [_point(1, 1000), _point(3, 3000), _point(21, 19_000, sent=19_000)],
    )
    found = _found(points, tmp_path)
    assert {plot.name for plot in found.plots} == {p.stem for p in tmp_path.glob("*.svg")}
    answered, lost, cpu = (plot.sentence for plot in found.plots)
    assert "answered 3,000 datagrams a second at most" in answered
    assert "18,900 by the kernel's hash and at least 19,000 by Sockway's" in answered
    assert "at least 6.3 times as many" in answered
    assert "3x, 3x and 21x" in answered
    assert "the limit of Sockway was not reached" in answered
    assert "86% with one accepting thread, 10% with SO_REUSEPORT, 0%" in lost
    assert "At 3x the base load, the highest that all took" in cpu
    assert "20.00 with one accepting thread, 0.53 with SO_REUSEPORT and 0.53 with Sockway" in cpu
    assert "38.0 times as much" in cpu
    told = found.notes[0]
    assert "did not keep up at 21x" in told
    assert "too much for one accepting thread and SO_REUSEPORT" in told
    assert "It was not for Sockway" in told
    assert "nothing is known of the spread" in told
    assert found.systems["sockway"]["taken_factor"].value == 21
    assert found.systems["sockway"]["limit_reached"].value == 0
    assert found.systems["reuseport"]["limit_reached"].value == 1
    assert found.systems["reuseport"]["lost"].value == 2100


def test_each_limit_that_was_reached_is_one() -> None:
    """Then nothing is 'at least'."""
    points = _points([_point(21, 3000)], [_point(21, 12_000)], [_point(21, 15_000)])
    words = answered_sentence(points)
    assert "at least" not in words
    assert "not reached" not in words
    assert "5.0 times as many" in words
    assert "too much for one accepting thread, SO_REUSEPORT and Sockway." in note(points, BY_KERNEL)


def test_a_thread_that_answers_nothing_is_no_divisor(tmp_path: Path) -> None:
    """The report is made all the same."""
    points = _points([_point(21, 0)], [_point(21, 21_000)], [_point(21, 21_000)])
    found = _found(points, tmp_path)
    assert "times as many" not in found.plots[0].sentence
    assert "one accepting thread" not in cpu_sentence(points)
    assert found.tables[0].rows[0][-1] == ""


def test_rounds_have_their_quartiles(tmp_path: Path) -> None:
    """Medians are drawn with their spread, and the note says so."""
    rounds = [[_point(1, 1000), _point(21, answered)] for answered in (3000, 4000, 6000)]
    points: dict[Name, list[list[Point]]] = dict.fromkeys(get_args(Name), rounds)
    found = _found(points, tmp_path)
    figure = found.systems["sockway"]["answered_21x"]
    assert (figure.low, figure.value, figure.high) == (3500, 4000, 5000)
    assert 'id="LineCollection_1"' in (tmp_path / "scale-answered.svg").read_text()
    assert "medians of 3 rounds, with their quartiles" in found.notes[0]


def test_drops_of_the_clients_are_told() -> None:
    """Else they would look like the system's losses."""
    point, other = _point(21, 18_000, dropped=2000), _point(21, 18_000)
    words = note(_points([other], [other], [point]), BY_KERNEL)
    assert "its own buffers dropped 2,000 answers" in words
    assert "too much for one accepting thread and SO_REUSEPORT. It was not for Sockway" in words


def test_capacity_is_a_rate_that_was_measured() -> None:
    """A thread that is never full has no limit that anybody knows."""

    def takes(most: int, sent: int = 1 << 30) -> list[object]:
        def measure(rate: float) -> Point:
            count = min(int(rate), sent)
            return Point(0, rate, count, min(count, most), min(count, most), 1.0, 0.01)

        found = capacity_by(measure, 3)
        return [found.rate, found.full]

    assert takes(5000) == [5000, True]
    assert takes(1 << 30, sent=30_000) == [30_000, False]
    assert takes(1 << 30) == [2000 << 7, False]
    assert "its limit is not known" in note(
        _points([_point(1, 1000)], [_point(1, 1000)], [_point(1, 1000)]),
        Circumstances(full=30_000, was_full=False, by_kernel=False),
    )
