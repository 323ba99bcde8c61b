"""Stamps of real connections: told, learnt, echoed, and seen on the wire."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from sockway.balancer.stamping import Stamping, StampingSpec
from sockway.errors import (
    BusyError,
    ConfigError,
    IncompatibleError,
    KernelError,
    NotFoundError,
)
from sockway.kernel import Link, Netns, ObjectLayout, Program, bpffs
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
        "server_kind": 0xB6,
        "client_kind": 0xB7,
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
    ],
)
def test_nobody_else_gets_one(cgroup: Path, run: Run, changed: dict[str, Any]) -> None:
    """Neither hosts that were not named, nor other ports."""
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
    for place, words in (
        (tmp_path / "none", "can't open cgroup"),
        (tmp_path, "is no cgroup of version 2"),
    ):
        with pytest.raises(ConfigError, match=words) as raised:
            Stamping.up(spec(place))
        assert str(cgroup2_mount()) in (raised.value.hint or "")
    assert not list(bpffs_root.glob("@stamp-*"))
    file = tmp_path / "stamp.toml"
    file.write_text('peers = ["10.0.0.0/8"]\nserver_ports = [70000]\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2: server_ports"):
        StampingSpec.read(file)


def test_another_cgroup(cgroup: Path, run: Run) -> None:
    """The program moves there, what was counted goes with it, and the old cgroup is left alone."""
    with other_cgroup() as other, stamped(spec(other)):
        run("127.0.0.1", "2")
        assert not Stamping.existing().counters()["told"]
        changed = Stamping.up(spec(cgroup))
        assert changed.stamped().cgroup == cgroup
        run("127.0.0.1", "2")
        assert changed.counters()["echoed"] == 1
        Stamping.up(spec(other))
        run("127.0.0.1", "2")
        assert changed.counters()["echoed"] == 1
        assert changed.stamped().cgroup == other
    all_of_it = spec(cgroup, server_ports=[1], client_ports=[1]).model_dump() | {"cgroup": None}
    with stamped(StampingSpec.model_validate(all_of_it)) as stamping:
        assert stamping.stamped().cgroup == cgroup2_mount()


def test_a_cgroup_that_is_gone(cgroup: Path, run: Run) -> None:
    """Another takes its place; it can be taken off as well."""
    with other_cgroup() as other:
        made = Stamping.up(spec(other))
    until = time.monotonic() + 5
    while made.stamped().cgroup is not None:
        assert time.monotonic() < until
        time.sleep(0.02)
    Stamping.up(spec(cgroup))
    run("127.0.0.1", "2")
    assert made.counters()["echoed"] == 1
    with other_cgroup() as other:
        Stamping.up(spec(other))
    made.down()
    assert Stamping.names() == []


def test_a_link_that_takes_no_other_program(
    cgroup: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is an error, and what was stamped is stamped on."""

    def refuse(link: Link, program: Program) -> None:
        del link, program
        raise KernelError("can't exchange a link's program")

    with stamped(spec(cgroup)) as stamping:
        monkeypatch.setattr(Link, "update", refuse)
        with pytest.raises(KernelError, match="exchange"):
            Stamping.up(spec(cgroup, server_ports=[1]))
        assert stamping.stamped().server_ports == [PORT]
        run("127.0.0.1", "2")
        assert stamping.counters()["echoed"] == 1


def test_who_comes_second_takes_nothing_away(
    cgroup: Path, bpffs_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes the stamps between this one's look and its lock."""
    holding = contextlib.ExitStack()
    mounted = bpffs.ensure_mounted

    def overtaken(path: Path) -> Path:
        monkeypatch.setattr(bpffs, "ensure_mounted", mounted)
        Stamping.up(spec(cgroup))
        holding.enter_context(bpffs.lock(bpffs_root / "@stamp-main"))
        return path

    monkeypatch.setattr(bpffs, "ensure_mounted", overtaken)
    with holding:
        with pytest.raises(BusyError):
            Stamping.up(spec(cgroup))
        assert Stamping.names() == ["main"]
        # Nor does `down` while another changes it.
        with pytest.raises(BusyError):
            Stamping.existing().down()
        assert Stamping.existing().stamped().server_id == ID
    Stamping.existing().down()
    assert not list(bpffs_root.glob("@stamp-*"))


def test_stamps_of_another_version(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are not taken over: their octets mean something else. They can be taken off."""
    constant = ObjectLayout.constant

    def other(layout: ObjectLayout, enum: str, name: str) -> int:
        return constant(layout, enum, name) + (name == "STAMP_ABI")

    monkeypatch.setattr(ObjectLayout, "constant", other)
    with stamped(spec(cgroup)):
        monkeypatch.undo()
        for asking in (lambda: Stamping.up(spec(cgroup)), Stamping.existing().stamped):
            with pytest.raises(IncompatibleError, match="another version") as raised:
                asking()
            assert "sockway stamp down --name main" in (raised.value.hint or "")


def test_what_is_stamped_can_be_seen(cgroup: Path, bpffs_root: Path) -> None:
    """As it was written, from the program's own maps."""
    del bpffs_root
    peers = ["10.0.0.0/8", "2001:db8::/32", "::/0"]
    kinds = {
        "server_kind": 253, "server_experiment": 0x1234, "client_kind": 254,
        "client_experiment": 0x4321, "byte_order": "little",
    }  # fmt: skip
    wanted = StampingSpec.model_validate(
        spec(cgroup).model_dump() | kinds | {"peers": peers, "client_ports": [80, PORT]}
    )
    with stamped(wanted) as stamping:
        found = stamping.stamped()
        assert found.as_json() == {
            "name": "main", "cgroup": str(cgroup), "server_id": ID, "server_ports": [PORT],
            "client_ports": [80, PORT], "peers": ["10.0.0.0/8", "::/0"], **kinds,
        }  # fmt: skip
        Stamping.up(spec(cgroup, name="other"))
        assert Stamping.names() == ["main", "other"]
        Stamping.existing("other").down()


@pytest.mark.parametrize("prefix", ["::/0", "::/80", "::fffe:0:0/95"])
def test_prefixes_of_ipv6_are_of_ipv6(cgroup: Path, run: Run, prefix: str) -> None:
    """Though the program has IPv4 among them."""
    wanted = spec(cgroup, peers=[ip_network(prefix)])
    with stamped(wanted) as stamping:
        run("127.0.0.1", "2")
        counters = stamping.counters()
        assert not counters["told"] + counters["asked"] + counters["wrote"]
        run("::1", "10")
        assert bool(stamping.counters()["told"]) is (prefix != "::fffe:0:0/95")


WRONG = [
    ({"server_kind": None}, "server_kind is missing", 'profile = "katran"'),
    ({"client_kind": None}, "client_kind is missing", "kind of TCP option"),
    *(({"client_kind": kind}, f"client_kind = {kind}", "the kernel's own")
      for kind in (2, 3, 4, 5, 8, 19, 29, 30, 34, 69, 172, 174)),
    ({"server_kind": 253}, "can't be used", "wants server_experiment"),
    ({"client_kind": 254}, "can't be used", "wants client_experiment"),
    ({"client_experiment": 5}, "can't be used", "client_experiment is for kinds 253 and 254"),
    ({"client_kind": 254, "client_experiment": 0xF989}, "can't be used", "Fast Open"),
    ({"profile": "katran", "client_experiment": 5}, "can't be used", "has no client_experiment"),
    ({"server_id": None}, "can't be used", "give server_id, or backend"),
    ({"server_ports": []}, "can't be used", "nothing would be stamped"),
    ({"server_ports": list(range(1, 1025)), "client_ports": [2000]}, "can't be used", "1,025"),
    ({"peers": ["::ffff:10.0.0.0/104"]}, "line 5: peers", "write 10.0.0.0/8"),
    ({"peers": [f"10.{n >> 8}.{n & 255}.0/24" for n in range(4097)]}, "line 5: peers", "4,097"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "words", "hint"), WRONG)
def test_what_could_never_work_is_refused(
    tmp_path: Path, changed: dict[str, Any], words: str, hint: str
) -> None:
    """One error with the way out; without the mistake all is well."""
    good = {
        "server_id": 17, "server_ports": [443], "server_kind": 0xB6, "client_kind": 0xB7,
        "peers": ["10.0.0.0/8"],
    }  # fmt: skip
    file = tmp_path / "stamp.toml"

    def write(fields: dict[str, Any]) -> None:
        lines = [f"{name} = {json.dumps(v)}\n" for name, v in fields.items() if v is not None]
        file.write_text("".join(lines), encoding="utf-8")

    write(good)
    assert StampingSpec.read(file).server_kind == 0xB6
    write(good | changed)
    with pytest.raises(ConfigError, match=re.escape(words)) as raised:
        StampingSpec.read(file)
    assert raised.value.message.startswith(str(file))
    assert hint in (raised.value.hint or "")


def test_as_many_ports_as_the_program_has(tmp_path: Path, cgroup: Path, run: Run) -> None:
    """Also if most of them are in both lists."""
    del tmp_path, run
    ports = [*range(7000, 8023), PORT]
    with stamped(spec(cgroup, server_ports=ports, client_ports=ports)) as stamping:
        assert len(stamping.stamped().server_ports) == len(set(ports))


@contextlib.contextmanager
def other_cgroup() -> Iterator[Path]:
    """One more, while the block lasts."""
    mount = cgroup2_mount()
    assert mount is not None
    place = mount / f"sockway-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    try:
        yield place
    finally:
        place.rmdir()


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
