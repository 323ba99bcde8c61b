"""`sockway stamp check`: whether a server stamps, and what is said if it does not."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from sockway.balancer import BalancerSpec
from sockway.balancer.stampcheck import check
from sockway.balancer.stamping import Stamping, StampingSpec
from sockway.errors import ConfigError, KernelError
from sockway.kernel import Netns, cgroup
from tests.balancer import middlebox as boxes
from tests.balancer.middlebox import ACK, FIN, SYN, Segment, middlebox
from tests.balancer.middlebox import stripped as strip

pytestmark = pytest.mark.root

PORT = 7777
KINDS: dict[str, Any] = {"server_kind": 0xB6, "client_kind": 0xB7}
SHARED: dict[str, Any] = {
    "server_kind": 253, "client_kind": 253, "server_experiment": 0x1111,
    "client_experiment": 0x2222,
}  # fmt: skip
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
    """A cgroup for a server, in a namespace that this thread is in."""
    del bpffs_root
    made = cgroup.mount() / f"sockway-{uuid.uuid4().hex[:8]}"
    made.mkdir()
    with netns.entered():
        yield made
    made.rmdir()


@contextlib.contextmanager
def serving(place: Path, program: str = SERVER) -> Iterator[None]:
    """A server in the cgroup: who listens before its program is attached tells nothing yet."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE,
        preexec_fn=lambda: cgroup.move(place),  # noqa: PLW1509 - nothing else runs
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


@contextlib.contextmanager
def stamped(place: Path, **changed: Any) -> Iterator[None]:
    """The server runs, and tells its ID."""
    fields: dict[str, Any] = {
        "name": place.name, "cgroup": place, "server_id": 17, "server_ports": [PORT],
        "peers": [ip_network("127.0.0.0/8"), ip_network("::1/128")],
    } | KINDS  # fmt: skip
    if "profile" in changed:
        fields = {k: v for k, v in fields.items() if k not in KINDS}
    made = Stamping.up(StampingSpec(**(fields | changed)))
    try:
        with serving(place):
            yield
    finally:
        made.down()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("kinds", [KINDS, SHARED])
def test_a_server_that_stamps(place: Path, host: str, kinds: dict[str, Any]) -> None:
    """Its ID, and that it comes back."""
    with stamped(place, **kinds):
        found = check(host, PORT, **kinds)
    assert (found.ok, found.server_id, found.echoed) == (True, 17, True)
    assert found.wrote > 0
    assert "on all packets" in found.why


def test_one_that_does_not(place: Path) -> None:
    """It was asked."""
    with serving(place):
        found = check("127.0.0.1", PORT, timeout=0.3, **KINDS)
    assert (found.ok, found.server_id, found.echoed, found.wrote) == (False, None, None, 0)
    assert found.asked > 0
    assert "server_ports, peers" in found.why


def test_another_byte_order(place: Path) -> None:
    """It is seen by what can't be an ID; with the right profile all is well."""
    with stamped(place, profile="katran"):
        found = check("127.0.0.1", PORT, **KINDS)
        assert not found.ok
        assert "0x11000000" in found.why
        assert check("127.0.0.1", PORT, profile="katran").server_id == 17


def test_a_server_that_expects_another_kind(place: Path) -> None:
    """The ID that comes back is nothing to it: it tells on, and that is seen."""
    with stamped(place, client_kind=0xB8):
        found = check("127.0.0.1", PORT, **KINDS)
    assert (found.ok, found.server_id, found.echoed) == (False, 17, False)
    assert found.wrote > 0
    assert "client_kind" in found.why


def test_a_server_that_takes_nothing_before_data(place: Path) -> None:
    """Its kernel drops the acknowledgement of the handshake, and with it what came back."""
    deferred = SERVER.replace("print(", "server.setsockopt(6, 9, 30); print(")
    fields = {"server_id": 17, "server_ports": [PORT], "peers": ["127.0.0.0/8"], **KINDS}
    made = Stamping.up(StampingSpec(name=place.name, cgroup=place, **fields))
    try:
        with serving(place, deferred):
            found = check("127.0.0.1", PORT, **KINDS)
    finally:
        made.down()
    assert (found.ok, found.server_id, found.echoed) == (True, 17, True)


@pytest.mark.parametrize("lost", ["echo", "ends", "first"])
def test_a_box_on_the_way(place: Path, lost: str) -> None:
    """It strips what comes back, swallows the end, or loses what the SYN-ACK told."""

    def alter(segment: Segment, frame: bytearray) -> bool:
        if lost == "echo":
            strip({KINDS["client_kind"]}, segment, frame)
        elif lost == "first" and segment.flags & (SYN | ACK) == SYN | ACK:
            strip({KINDS["server_kind"]}, segment, frame)
        return not (lost == "ends" and segment.flags & FIN)

    peers = [ip_network("10.7.0.0/24")]
    fields = {"server_id": 17, "server_ports": [PORT], "peers": peers, **KINDS}
    with middlebox() as box:
        box.alter = alter
        made = Stamping.up(StampingSpec(name=place.name, cgroup=place, **fields))
        try:
            with box.server.entered(), serving(place), box.client.entered():
                found = check(boxes.SERVER, PORT, timeout=2, **KINDS)
        finally:
            made.down()
    expected = {"echo": False, "ends": None, "first": True}[lost]
    assert (found.ok, found.server_id, found.echoed) == (expected is True, 17, expected)
    assert found.told == ("later packet" if lost == "first" else "SYN-ACK")
    assert {"echo": "strips", "ends": "unknown", "first": "when asked"}[lost] in found.why
    assert all(not segment.payload for segment in box.of_client())


def test_all_addresses_of_a_name_are_tried(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server listens on the second alone; one of a link keeps the link's name."""
    targets = [(socket.AF_INET6, ("::1", PORT, 0, 0)), (socket.AF_INET, ("127.0.0.1", PORT))]
    given = [(family, 1, 6, "", address) for family, address in targets]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: given)
    only = SERVER.replace('"::"', '"127.0.0.1"').replace("AF_INET6, dualstack_ipv6=True", "AF_INET")
    with serving(place, only):
        assert check("two.example", PORT, timeout=0.1, **KINDS).target == f"127.0.0.1:{PORT}"
    with pytest.raises(KernelError, match=r"\[::1\]:7777: Connection refused; 127.0.0.1:7777"):
        check("two.example", PORT, **KINDS)


def test_an_address_of_a_link(place: Path) -> None:
    """Its link is part of it."""
    with IPRoute() as route:
        index = route.link_lookup(ifname="lo")[0]
        route.addr("add", index=index, address="fe80::1", prefixlen=64, flags=0x02)
    with stamped(place, peers=[ip_network("fe80::/64")]):
        found = check("fe80::1%lo", PORT, **KINDS)
    assert (found.target, found.ok) == (f"[fe80::1%lo]:{PORT}", True)


def test_nothing_is_left(place: Path, bpffs_root: Path) -> None:
    """Neither cgroup nor program, whether it went well or not; this process is where it was."""
    before = Path("/proc/self/cgroup").read_text(encoding="ascii")
    with serving(place):
        check("127.0.0.1", PORT, timeout=0.1, **KINDS)
    with pytest.raises(KernelError, match=r"127.0.0.1:1: Connection refused"):
        check("127.0.0.1", 1, **KINDS)
    for name in ("nowhere.invalid", "a..b"):
        with pytest.raises(ConfigError, match="can't resolve"):
            check(name, 1, **KINDS)
    assert Path("/proc/self/cgroup").read_text(encoding="ascii") == before
    assert not list(bpffs_root.glob("@stamp-*"))
    assert not list(place.parent.glob("sockway-check-*"))


def test_what_a_killed_check_leaves_goes_with_the_next(place: Path, bpffs_root: Path) -> None:
    """Nothing was pinned, and an empty cgroup is removed."""
    text = f"from sockway.balancer.stampcheck import check; check('127.0.0.1', {PORT}, timeout=30"
    text += ", profile='katran')"
    with serving(place):
        process = subprocess.Popen([sys.executable, "-c", text])
        left = place.parent / f"sockway-check-{process.pid}"
        until = time.monotonic() + 10
        while not left.exists() or str(process.pid) not in (left / "cgroup.procs").read_text():
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(0.5)  # the connection is there
        process.terminate()
        process.wait()
        assert left.exists()
        assert not list(bpffs_root.glob("@stamp-*"))
        check("127.0.0.1", PORT, timeout=0.1, **KINDS)
    assert not left.exists()


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({}, "server_kind is missing"),
        ({"profile": "katrn"}, "profile"),
        ({"server_kind": 8, "client_kind": 9}, "server_kind = 8 can't be used"),
    ],
)
def test_fields_that_are_wrong(kinds: dict[str, Any], words: str) -> None:
    """Are one clear error."""
    with pytest.raises(ConfigError, match=words) as raised:
        check("127.0.0.1", PORT, **kinds)
    assert raised.value.hint


def test_profiles() -> None:
    """A field that says otherwise is one clear error."""
    peers = {"peers": ["10.0.0.0/8"], "client_ports": [443]}
    spec = StampingSpec.model_validate(peers | {"profile": "katran"})
    assert (spec.server_kind, spec.client_kind, spec.byte_order) == (0xB6, 0xB7, "little")
    balancer = BalancerSpec.model_validate({"stamp": {"profile": "katran"}})
    assert balancer.stamp is not None
    assert (balancer.stamp.kind, balancer.stamp.byte_order) == (0xB7, "little")
    for field, value in (("byte_order", "big"), ("client_kind", 0xB8)):
        with pytest.raises(ValueError, match=f"profile katran has {field}"):
            StampingSpec.model_validate(peers | {"profile": "katran", field: value})
    with pytest.raises(ValueError, match="profile katran has kind = 183, not 200"):
        BalancerSpec.model_validate({"stamp": {"profile": "katran", "kind": 200}})
