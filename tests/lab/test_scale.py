"""The experiment `scale`: systems answer, budgets bind, and the sentences follow the figures."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import get_args

import pytest
from rich.progress import Progress

from sockway.kernel import Netns
from sockway.lab import cpubudget, scale
from sockway.lab.cpubudget import Budget, budgets
from sockway.lab.experiments import Setting
from sockway.lab.scale import Clients, Point
from sockway.lab.scale_systems import Name, cpu_seconds, running


@pytest.mark.root
@pytest.mark.parametrize("name", get_args(Name))
def test_each_system_answers_what_it_can(name: Name, netns: Netns, bpffs_root: Path) -> None:
    """With room enough nothing is lost, and no process is left."""
    del bpffs_root

    def answered() -> tuple[int, int, list[int]]:
        with running(name, 3, 0.5) as (system, _), closing(Clients()) as clients:
            clients.offer(500, 0.5)
            before = cpu_seconds(system)
            sent, got = clients.offer(500, 0.5)
            assert cpu_seconds(system) > before
            return sent, got, system.pids

    sent, got, pids = netns.run(answered)
    assert sent > 200
    assert abs(got - sent) <= 5  # those under way at either end
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


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


def _point(factor: float, answered: int, sent: int | None = None) -> Point:
    due = int(1000 * factor)
    return Point(factor, due, due if sent is None else sent, answered, 1.0, 0.01)


def test_sentences_follow_the_figures(tmp_path: Path) -> None:
    """Other figures, other words; a generator that is the limit is told."""
    points: dict[Name, list[list[Point]]] = {
        "single-acceptor": [[_point(1, 1000), _point(3, 2900), _point(21, 3000)]],
        "reuseport": [[_point(1, 1000), _point(3, 3000), _point(21, 18_900)]],
        "sockway": [[_point(1, 1000), _point(3, 3000), _point(21, 19_000, sent=19_000)]],
    }
    with Progress(disable=True) as progress:
        setting = Setting(tmp_path, quick=True, seed=1, progress=progress)
        found = scale.found(points, 3000, setting, by_kernel=False)
    assert {plot.name for plot in found.plots} == {p.stem for p in tmp_path.glob("*.svg")}
    assert "6.3 times as many" in found.plots[0].sentence
    assert "3x, 3x and 21x" in found.plots[0].sentence
    assert "86% with one accepting thread, 10% with SO_REUSEPORT, 0%" in found.plots[1].sentence
    assert "did not keep up at 21x" in found.notes[0]
    assert "themselves" in found.notes[0]
    assert found.systems["sockway"]["taken_factor"].value == 21
