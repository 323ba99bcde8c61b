"""`sockway stamp check`: whether a server stamps, and what is said if it does not."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from sockway.balancer import BalancerSpec
from sockway.balancer.stampcheck import check
from sockway.balancer.stamping import Stamping, StampingSpec
from sockway.errors import ConfigError, KernelError
from sockway.kernel import Netns, cgroup

pytestmark = pytest.mark.root

PORT = 7777
SERVER = f"""
import socket
with socket.create_server(("::", {PORT}), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("ready", flush=True)
    kept = []
    while True:
        kept.append(server.accept())
"""


@pytest.fixture
def place(netns: Netns, bpffs_root: Path) -> Iterator[Path]:
    """The cgroup of a server that runs, in a namespace that this thread is in."""
    del bpffs_root
    made = cgroup.mount() / f"sockway-{uuid.uuid4().hex[:8]}"
    made.mkdir()
    with netns.entered():
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdout=subprocess.PIPE,
            preexec_fn=lambda: cgroup.move(made),  # noqa: PLW1509 - nothing else runs
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            yield made
            process.kill()
    made.rmdir()


@contextlib.contextmanager
def stamped(place: Path, **changed: Any) -> Iterator[None]:
    """The server tells its ID."""
    fields: dict[str, Any] = {
        "name": place.name, "cgroup": place, "server_id": 17, "server_ports": [PORT],
        "peers": [ip_network("127.0.0.0/8"), ip_network("::1/128")],
    }  # fmt: skip
    made = Stamping.up(StampingSpec(**(fields | changed)))
    try:
        yield
    finally:
        made.down()


@pytest.fixture
def listens(place: Path) -> Callable[[], None]:
    """Wait for the server: it listens when its program is attached."""
    del place

    def wait() -> None:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), 1):
                return
            time.sleep(0.02)
        pytest.fail("no server")

    return wait


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_server_that_stamps(place: Path, listens: Callable[[], None], host: str) -> None:
    """Its ID, and that it comes back."""
    with stamped(place):
        listens()
        found = check(host, PORT)
    assert (found.ok, found.server_id) == (True, 17)
    assert found.echoed > 0
    assert "on all packets" in found.why


def test_one_that_does_not(place: Path, listens: Callable[[], None]) -> None:
    """It was asked."""
    del place
    listens()
    found = check("127.0.0.1", PORT, timeout=0.3)
    assert (found.ok, found.server_id, found.echoed) == (False, None, 0)
    assert found.asked > 0
    assert "server_ports, peers" in found.why


def test_another_byte_order(place: Path, listens: Callable[[], None]) -> None:
    """It is seen by what can't be an ID; with the right profile all is well."""
    with stamped(place, profile="katran"):
        listens()
        found = check("127.0.0.1", PORT)
        assert not found.ok
        assert "0x11000000" in found.why
        assert check("127.0.0.1", PORT, profile="katran").server_id == 17


def test_nothing_is_left(place: Path, listens: Callable[[], None], bpffs_root: Path) -> None:
    """Neither cgroup nor program, whether it went well or not; this process is where it was."""
    before = Path("/proc/self/cgroup").read_text(encoding="ascii")
    listens()
    check("127.0.0.1", PORT, timeout=0.1)
    with pytest.raises(KernelError, match=r"127.0.0.1:1: Connection refused"):
        check("127.0.0.1", 1)
    with pytest.raises(ConfigError, match="can't resolve"):
        check("nowhere.invalid", 1)
    assert Path("/proc/self/cgroup").read_text(encoding="ascii") == before
    assert not list(bpffs_root.glob("@stamp-*"))
    assert not list(place.parent.glob("sockway-check-*"))


def test_profiles() -> None:
    """A field that says otherwise is one clear error."""
    peers = {"peers": ["10.0.0.0/8"]}
    spec = StampingSpec.model_validate(peers | {"profile": "katran"})
    assert (spec.server_kind, spec.client_kind, spec.byte_order) == (0xB6, 0xB7, "little")
    balancer = BalancerSpec.model_validate({"stamp": {"profile": "katran"}})
    assert (balancer.stamp.kind, balancer.stamp.byte_order) == (0xB7, "little")
    for field, value in (("byte_order", "big"), ("client_kind", 0xB8)):
        with pytest.raises(ValueError, match=f"profile katran has {field}"):
            StampingSpec.model_validate(peers | {"profile": "katran", field: value})
    with pytest.raises(ValueError, match="profile katran has kind = 183, not 200"):
        BalancerSpec.model_validate({"stamp": {"profile": "katran", "kind": 200}})
