"""What others read of a capture: the option is on the packets that should have it, on no others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap, wrpcap

from tests.balancer.middlebox import ACK, SYN, Middlebox
from tests.balancer.stamped import ID, PORT, TOLD, WROTE, connected, listening, stamped, talk

pytestmark = pytest.mark.root

_USUAL = {0, 1, 2, 3, 4, 5, 8}
"""Kinds of options that kernels write."""
OCTETS = ID.to_bytes(4, "big")
SHARED: dict[str, Any] = {
    "server_kind": 253, "server_experiment": 0x1234,
    "client_kind": 254, "client_experiment": 0x4321,
}  # fmt: skip


@pytest.fixture(name="capture", params=[False, True], ids=["own kinds", "shared kinds"])
def made_capture(
    cgroup: Path, box: Middlebox, tmp_path: Path, request: pytest.FixtureRequest
) -> tuple[Path, tuple[int, bytes], tuple[int, bytes]]:
    """A file of one connection's packets, and the options: kinds, and what is behind the length."""
    kinds = SHARED if request.param else {}
    with stamped(cgroup, **kinds), listening(box) as server, connected(box, server) as ends:
        talk(*ends)
        frames = list(box.frames)
    assert len(frames) > 10
    file = tmp_path / "stamps.pcap"
    wrpcap(str(file), [Ether(frame) for frame in frames])
    if request.param:
        return file, (253, b"\x12\x34" + OCTETS), (254, b"\x43\x21" + OCTETS)
    return file, (TOLD, OCTETS), (WROTE, OCTETS)


def wanted(flags: int, *, to_server: bool, told: Any, wrote: Any) -> list[Any]:
    """The options that a packet should have: no SYN of a client's, of a server's no others."""
    if to_server:
        return [] if flags & SYN else [wrote]
    return [told] if flags & (SYN | ACK) == SYN | ACK else []


def test_scapy(capture: tuple[Path, Any, Any]) -> None:
    """It finds them well-formed."""
    file, told, wrote = capture
    for packet in rdpcap(str(file)):
        tcp = packet[TCP]
        found = [option for option in tcp.options if isinstance(option[0], int)]
        to_server = tcp.dport == PORT
        assert found == wanted(int(tcp.flags), to_server=to_server, told=told, wrote=wrote)


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_tshark(capture: tuple[Path, Any, Any]) -> None:
    """So does Wireshark, and no length or checksum is wrong to it."""
    file, told, wrote = capture
    fields = [
        "tcp.dstport", "tcp.flags", "tcp.option_kind", "tcp.options.unknown.payload",
        "tcp.options.experimental.exid", "tcp.options.experimental.data",
        "tcp.checksum.status", "_ws.expert.message",
    ]  # fmt: skip
    done = subprocess.run(
        [
            "tshark", "-r", str(file), "-o", "tcp.check_checksum:TRUE", "-T", "fields",
            *(word for field in fields for word in ("-e", field)),
        ],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(rdpcap(str(file)))
    for line in lines:
        port, flags, kinds, own, experiment, shared, checksum, remarks = line.split("\t")
        assert checksum == "1", line
        assert "invalid" not in remarks.lower(), line
        assert "malformed" not in remarks.lower(), line
        found = [
            (kind, bytes.fromhex(own or experiment.removeprefix("0x") + shared))
            for kind in map(int, kinds.split(","))
            if kind not in _USUAL
        ]
        expected = wanted(int(flags, 16), to_server=int(port) == PORT, told=told, wrote=wrote)
        assert found == expected, line
