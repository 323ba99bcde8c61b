"""The tests of this folder run in a machine, as the job `network` of `make kernels`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.network.site import Site, site

# Not skipped elsewhere but unknown: they need devices, modules and interfaces of that machine.
collect_ignore_glob = [] if os.environ.get("SOCKWAY_IN_MACHINE") else ["test_*.py"]


@pytest.fixture
def network(bpffs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A client, a balancer and a backend without links."""
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path / "run"))
    with site(bpffs_root) as made:
        yield made
