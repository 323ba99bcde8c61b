"""Fixtures of the supervisor's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockway.kernel import Netns
from tests.serve.harness import Box


@pytest.fixture
def box(netns: Netns, bpffs_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """A namespace to serve in; what was started in it is gone afterwards."""
    del bpffs_root  # by environment
    # Short: a socket's path has 107 characters at most. Open: workers of other users look into it.
    with tempfile.TemporaryDirectory(prefix="sw-") as directory:
        Path(directory).chmod(0o755)
        monkeypatch.setenv("SOCKWAY_RUNTIME", directory)
        made = Box(netns, Path(directory))
        yield made
        made.close()
