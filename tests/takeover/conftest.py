"""What tests of takeover have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sockway.kernel import Netns
from tests.takeover.echoes import Echoes


@pytest.fixture
def echoes(netns: Netns, tmp_path: Path) -> Iterator[Echoes]:
    """A place for generations of the echo; all end with the test."""
    with ExitStack() as stack:
        yield Echoes(netns, tmp_path, stack)
