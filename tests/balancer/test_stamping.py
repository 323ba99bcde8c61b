"""Stamps of real connections: told, learnt, echoed, and seen on the wire."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from sockway.balancer.stamping import Stamping, StampingSpec
from sockway.errors import ConfigError, NotFoundError
from sockway.kernel import Netns
from sockway.kernel.features.host import cgroup2_mount

pytestmark = pytest.mark.root

PORT = 7777
ID = 0xABCDEF
LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("::1/128")]
ETH_P_ALL = 3

Run = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = """
import socket, sys
host, family = sys.argv[1], int(sys.argv[2])
with socket.create_server((host, 7777), family=family) as server:
    client = socket.create_connection((host, 7777))
    accepted, _ = server.accept()
    for _ in range(5):
        client.sendall(b"question"); accepted.recv(100)
        accepted.sendall(b"answer"); client.recv(100)
    client.close(); accepted.close()
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of the test's own."""
    mount = cgroup2_mount()
    assert mount is not None
    place = mount / f"sockway-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    yield place
    place.rmdir()


@pytest.fixture
def run(cgroup: Path, netns: Netns, bpffs_root: Path) -> Run:
    """Runs a program in the cgroup, in a namespace of its own."""
    del bpffs_root

    def running(*arguments: str) -> subprocess.CompletedProcess[str]:
        return netns.run(
            lambda: subprocess.run(
                [sys.executable, "-c", PROGRAM, *arguments],
                preexec_fn=lambda: (cgroup / "cgroup.procs").write_text("0") and None,
                check=True, capture_output=True, text=True, timeout=20,
            )
        )  # fmt: skip

    return running


def spec(cgroup: Path, **changed: Any) -> StampingSpec:
    """Both sides on one host."""
    fields: dict[str, Any] = {
        "cgroup": cgroup,
        "server_id": ID,
        "server_ports": [PORT],
        "client_ports": [PORT],
        "peers": LOOPBACK,
    }
    return StampingSpec(**(fields | changed))


@contextlib.contextmanager
def stamped(wanted: StampingSpec) -> Iterator[Stamping]:
    """Stamps, while the block lasts."""
    made = Stamping.up(wanted)
    try:
        yield made
    finally:
        made.down()


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", 2), ("::1", 10)])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"byte_order": "little"},
        {
            "server_kind": 253, "server_experiment": 0x1111,
            "client_kind": 254, "client_experiment": 0x2222,
        },
    ],
)  # fmt: skip
def test_an_id_is_told_and_comes_back(
    cgroup: Path, run: Run, host: str, family: int, more: dict[str, Any]
) -> None:
    """On the SYN-ACK alone, and on every packet of the client's after it."""
    with stamped(spec(cgroup, **more)) as stamping:
        run(host, str(family))
        counters = stamping.counters()
        assert counters["told"] == counters["learnt"] == counters["echoed"] == 1
        assert counters["wrote"] >= 6
        assert not any(counters[name] for name in ("told_again", "asked", "no_room", "other_id"))


def test_what_is_on_the_wire(cgroup: Path, run: Run, netns: Netns) -> None:
    """The option is on the packets that should have it, and on no others."""
    with (
        stamped(spec(cgroup)),
        netns.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as tap,
    ):
        netns.run(lambda: tap.bind(("lo", ETH_P_ALL)))
        tap.settimeout(0.2)
        run("127.0.0.1", "2")
        seen = list(_packets(tap))
    assert len(seen) > 10
    for to_server, flags, options in seen:
        syn, ack = flags & 0x02, flags & 0x10
        kinds = {kind: value for kind, value in options.items() if kind in {0xB6, 0xB7}}
        if syn and ack:
            assert kinds == {0xB6: ID.to_bytes(4, "big")}
        elif to_server and not syn and not flags & 0x04:
            assert kinds == {0xB7: ID.to_bytes(4, "big")}
        else:
            assert not kinds


@pytest.mark.parametrize(
    "changed",
    [
        {"peers": [ip_network("10.0.0.0/8")]},
        {"server_ports": [1], "client_ports": [1]},
        {"server_id": 0},
    ],
)
def test_nobody_else_gets_one(cgroup: Path, run: Run, changed: dict[str, Any]) -> None:
    """Neither hosts that were not named, nor other ports; and without an ID nobody is told."""
    with stamped(spec(cgroup, **changed)) as stamping:
        run("127.0.0.1", "2")
        counters = stamping.counters()
        assert counters["told"] == counters["wrote"] == counters["echoed"] == 0


def test_a_client_whose_server_does_not_speak_it_gives_up(cgroup: Path, run: Run) -> None:
    """It asks with 0 for some packets."""
    with stamped(spec(cgroup, server_ports=[])) as stamping:
        run("127.0.0.1", "2")
        counters = stamping.counters()
        assert counters["told"] == counters["learnt"] == 0
        assert 0 < counters["asked"] <= 16


def test_a_change_counts_on(cgroup: Path, run: Run) -> None:
    """What connections keep over it: see `test_stamp_changes.py`."""
    with stamped(spec(cgroup)) as stamping:
        run("127.0.0.1", "2")
        before = stamping.counters()
        changed = Stamping.up(spec(cgroup, server_ports=[PORT, 8888]))
        assert changed.counters() == before
        run("127.0.0.1", "2")
        assert changed.counters()["echoed"] == 2
    with pytest.raises(NotFoundError):
        Stamping.existing()


def test_a_cgroup_that_is_none(bpffs_root: Path, tmp_path: Path) -> None:
    """One error, and nothing is left."""
    for place, words in ((tmp_path / "none", "can't open cgroup"), (tmp_path, "cgroup")):
        with pytest.raises(Exception, match=words):
            Stamping.up(spec(place))
    assert not list(bpffs_root.glob("@stamp-*"))
    file = tmp_path / "stamp.toml"
    file.write_text('peers = ["10.0.0.0/8"]\nserver_ports = [70000]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2: server_ports"):
        StampingSpec.read(file)


def _packets(tap: socket.socket) -> Iterator[tuple[bool, int, dict[int, bytes]]]:
    """Whether each goes to the server, its flags, its options; each once, as it is sent."""
    with contextlib.suppress(TimeoutError):
        while True:
            frame, address = tap.recvfrom(2048)
            if address[2] != socket.PACKET_OUTGOING or frame[12:14] != b"\x08\x00":
                continue
            at = 14 + (frame[14] & 15) * 4
            port = struct.unpack_from("!H", frame, at + 2)[0]
            end = at + (frame[at + 12] >> 4) * 4
            yield port == PORT, frame[at + 13], dict(_options(frame[at + 20 : end]))


def _options(octets: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(octets) and octets[at]:
        if octets[at] == 1:
            at += 1
            continue
        yield octets[at], octets[at + 2 : at + octets[at + 1]]
        at += octets[at + 1]
