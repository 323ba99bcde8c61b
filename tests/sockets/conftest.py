"""Services in a namespace and a bpffs of the test's own, read by the test itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sockway import Service, Vip
from sockway.kernel import Netns
from tests.sockets.harness import Receivers

Open = Callable[..., Service]


@pytest.fixture
def inside(netns: Netns) -> Iterator[Netns]:
    """This thread is inside a fresh network namespace."""
    with netns.entered():
        yield netns


@pytest.fixture
def open_service(inside: Netns, bpffs_root: Path) -> Iterator[Open]:
    """Open services; what they pinned is gone after the test."""
    del inside, bpffs_root
    opened: list[Service] = []

    def make(*vips: Vip | str, name: str = "web", **options: Any) -> Service:
        service = Service.open(
            name, [v if isinstance(v, Vip) else Vip.parse(v) for v in vips], **options
        )
        opened.append(service)
        return service

    yield make
    for service in opened:
        service.close()


@pytest.fixture
def receivers() -> Iterator[Receivers]:
    """What reads the sockets of the test's generations."""
    reading = Receivers()
    yield reading
    reading.close()
