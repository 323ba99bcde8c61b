"""Runs of experiments: what fails is told and cleared away, the others go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sockway import extras
from sockway.errors import MissingExtra
from sockway.lab import runner
from sockway.lab.findings import Results
from sockway.lab.namespaces import NAMESPACES
from sockway.lab.network import names
from tests.lab.broken import LAB

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "tests.lab.run_broken"]


def start(output: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a run."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [*COMMAND, "--output", str(output), *arguments],
        env={**os.environ, "PYTHONPATH": path, "SOCKWAY_LAB_RUN": ""},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(output: Path, *arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of a run."""
    process = start(output, *arguments)
    out, errors = process.communicate(timeout=90)
    return process.returncode, out, errors


def results(output: Path) -> dict[str, Any]:
    """What a run found, which is as the schema says."""
    text = (output / "results.json").read_text(encoding="utf-8")
    Results.model_validate_json(text)
    found: dict[str, Any] = json.loads(text)
    return found


def left_of_labs() -> list[str]:
    """What there is of the tests' lab."""
    spaces = [entry.name for entry in NAMESPACES.glob(f"sockway-{LAB}-*")]
    return spaces + [name for name in names() if name == LAB]


class Page(HTMLParser):
    """What a page refers to, and whether its elements are closed."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Something begins."""
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Something without content."""
        self.tags.add(tag)
        self._look(attrs)

    def handle_endtag(self, tag: str) -> None:
        """It ends, and was the last to begin."""
        assert self.open.pop() == tag

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            elif name in {"src", "href", "xlink:href", "data", "srcset"} and value:
                self.references.append(value)
            if value and (inner := re.findall(r"url\(([^)]*)\)", value)):
                self.references += inner


def test_a_report_is_whole_and_by_itself(tmp_path: Path) -> None:
    """Page, results and plots are there; the page loads nothing and says what was found."""
    status, out, errors = run(tmp_path, "sound", "--quick", "--seed", "7")
    assert status == 0, errors
    assert out.strip().endswith("report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert {"svg", "table", "figcaption"} <= page.tags
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert len(page.ids) == len(set(page.ids))
    assert [word for word in page.references if word.lstrip("#") not in page.ids] == []
    assert "@import" not in text
    assert "Seed 7 &amp; nothing else." in text
    assert "It &lt;works&gt;" in text
    assert "&lt;b&gt;" in text
    assert "sockway lab run sound --quick --seed 7" in text
    assert os.uname().release in text
    for suffix in ("svg", "png"):
        assert (tmp_path / f"sound.{suffix}").stat().st_size > 1000
    found = results(tmp_path)["experiments"]["sound"]
    assert found["systems"]["sockway"]["seed"] == {"value": 7.0, "unit": "1", "n": 1}
    time_of = found["systems"]["sockway"]["time"]
    assert time_of == {"value": 2.0, "unit": "s", "n": 3, "low": 1.5, "high": 3.0}
    assert (found["seed"], found["quick"]) == (7, True)


def test_what_fails_is_told_and_the_others_run(tmp_path: Path) -> None:
    """In the report, in the results, in the exit status."""
    status, out, errors = run(tmp_path, "refused", "wrong", "sound", "--json")
    assert status == 1
    found = results(tmp_path)["experiments"]
    assert json.loads(out)["experiments"] == found
    assert found["refused"]["error"] == "no such luck (try again)"
    assert found["wrong"]["error"] == "ZeroDivisionError: by nothing"
    assert "error" not in found["sound"]
    assert "not finished: refused, wrong" in errors
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not finished: ZeroDivisionError: by nothing" in text


@pytest.mark.root
def test_an_experiment_that_dies_leaves_nothing(tmp_path: Path, bpffs_root: Path) -> None:
    """Its lab is taken down for it, its processes end, and what it made on the host goes."""
    before = sleepers()
    status, _, _ = run(tmp_path, "killed")
    assert status == 1
    assert "ended by signal 9" in results(tmp_path)["experiments"]["killed"]["error"]
    assert left_of_labs() == []
    assert sleepers() == before
    made = [Path(line) for line in (tmp_path / "made").read_text(encoding="utf-8").split()]
    kinds = {kind for kind in ("/sys/fs/cgroup", tempfile.gettempdir(), str(bpffs_root))
             if any(str(place).startswith(f"{kind}/") for place in made)}  # fmt: skip
    assert len(kinds) == 3
    assert [place for place in made if place.exists()] == []
    assert list(bpffs_root.glob("*/")) == []


def sleepers() -> set[str]:
    """Processes of `sleep 601`."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if (entry / "cmdline").read_bytes() == b"sleep\x00601\x00":
                found.add(entry.name)
        except OSError:
            continue
    return found


@pytest.mark.root
def test_an_experiment_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """After its time; it clears away by itself."""
    status, _, _ = run(tmp_path, "endless", "--limited")
    assert status == 1
    assert results(tmp_path)["experiments"]["endless"]["error"] == "not done within 2 s"
    assert (tmp_path / "up").exists()
    assert left_of_labs() == []


@pytest.mark.root
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_leaves_nothing(
    tmp_path: Path, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, or the end of the process that runs them all."""
    files = tmp_path / "files"
    files.mkdir()
    monkeypatch.setenv("TMPDIR", str(files))
    process = start(tmp_path, "endless")
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(how)
    process.communicate(timeout=40)
    assert process.returncode == 128 + how
    assert left_of_labs() == []
    assert list(files.iterdir()) == []


def test_a_missing_package_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not when the figures are there and no report can be written."""
    monkeypatch.setitem(extras.MODULES, "no_such_package", "lab")
    with pytest.raises(MissingExtra, match="no_such_package is not installed"):
        runner.run_all([], runner.Run(tmp_path / "new", quick=True, seed=1))
    assert not (tmp_path / "new").exists()


def test_an_unknown_experiment_is_refused(tmp_path: Path) -> None:
    """Before anything runs; the error says what there is."""
    status, _, errors = run(tmp_path / "new", "sound", "nothing")
    assert status == 2
    assert "no experiment 'nothing'" in errors
    assert "bind" in errors
    assert not (tmp_path / "new").exists()
