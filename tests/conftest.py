"""Fixtures that all tests share, and the rules of a run.

* `root` tests are skipped elsewhere, and say so; with ``--fail-on-skip`` (CI) a skip of
  any kind is a failure.
* Each test that needs kernel state gets its own: a network namespace, a bpffs.
* A run leaves nothing behind on the machine, else it fails.
"""

from __future__ import annotations

import ctypes
import os
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import leaks

if TYPE_CHECKING:
    from sockway.kernel import Netns

MNT_DETACH = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--fail-on-skip``."""
    parser.addoption(
        "--fail-on-skip",
        action="store_true",
        help="a skipped test is a failed test (CI: this machine must have all that tests need)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `root` where they can't work."""
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="needs root: bpf(), namespaces and mounts")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With ``--fail-on-skip`` turn a skip into a failure that tells its reason."""
    report = yield
    _refuse_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Likewise for a whole file that skips itself."""
    report = yield
    _refuse_skip(collector.config, report)
    return report


def _refuse_skip(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    if not config.getoption("--fail-on-skip") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"skipped, and nothing may be skipped in this run: {reason}"


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run if it leaves a mount, a namespace, a process or a BPF program behind."""
    base = tmp_path_factory.getbasetemp().resolve()
    marker = uuid.uuid4().hex
    everything = bool(os.environ.get("CI"))
    os.environ[leaks.MARKER] = marker
    before = leaks.snapshot(base, marker, everything=everything)
    yield
    left = leaks.left_over(before, base, marker, everything=everything)
    if left:
        pytest.fail("the tests left something behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def netns() -> Iterator[Netns]:
    """A fresh network namespace without a name, with `lo` up."""
    from sockway.kernel import Netns  # noqa: PLC0415 - most tests do without the kernel

    with Netns.create() as namespace:
        namespace.run(leaks.raise_loopback)
        yield namespace


@pytest.fixture
def bpffs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bpffs of the test's own, where SOCKWAY_BPFFS points; gone with all pins afterwards."""
    root = tmp_path / "bpffs"
    root.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(root), b"bpf", 0, b"mode=0700") != 0:
        error = ctypes.get_errno()
        pytest.fail(f"can't mount a bpffs on {root}: {os.strerror(error)}")
    monkeypatch.setenv("SOCKWAY_BPFFS", str(root))
    yield root
    if libc.umount2(os.fsencode(root), MNT_DETACH) != 0:
        error = ctypes.get_errno()
        pytest.fail(f"can't unmount {root}: {os.strerror(error)}")
