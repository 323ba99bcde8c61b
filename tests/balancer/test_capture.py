"""Packets with the decision that was taken, live and as pcapng; the chain to another program."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapNgReader

from sockway.balancer import Balancer, Captured, PcapngFile, read
from sockway.errors import BusyError, ConfigError, NotFoundError, StateError
from sockway.kernel import Netns
from tests.balancer.devices import passing

pytestmark = pytest.mark.root

CONFIG = """
[pool.web.backends]
web1 = "10.0.0.11"
[[vip]]
listen = "tcp://192.0.2.1:443"
pool = "web"
[[vip]]
listen = "tcp://192.0.2.2:443"
pool = "web"
"""
FRAMES = 5
DROP, PASS = 1, 2


@pytest.fixture
def balancer(netns: Netns, bpffs_root: Path) -> Iterator[Balancer]:
    """Two VIPs and a backend that nobody knows the way to."""
    with netns.entered():
        spec = read(CONFIG)
        with Balancer.open(spec, root=bpffs_root) as made:
            made.apply(spec)
            yield made
            made.remove()


def frame(vip: str) -> bytes:
    """A client's packet."""
    links = Ether(dst="02:00:00:00:00:aa", src="02:00:00:00:00:bb")
    return bytes(links / IP(src="198.51.100.1", dst=vip) / TCP(dport=443))


def send(balancer: Balancer) -> None:
    """Some to each VIP."""
    with balancer._state.program("balancer") as program:
        for _ in range(FRAMES):
            for vip in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
                program.test_run(frame(vip))


def test_one_vips_packets_and_nobody_elses(balancer: Balancer) -> None:
    """With what became of them, and as they came."""
    send(balancer)  # before: not captured
    with balancer.capture("tcp://192.0.2.1:443") as capture:
        send(balancer)
        found = list(capture.packets(FRAMES))
        assert not list(capture.packets(1, until=_once()))
    for packet in found:
        assert packet.vip == "tcp://192.0.2.1:443"
        assert packet.outcome == "no_route"
        assert packet.verdict == "drop"
        assert packet.frame == frame("192.0.2.1")
        assert packet.length == len(packet.frame)
        assert abs(packet.time - time.time()) < 60
    assert balancer._state.settings.capture == 0


def test_all_vips(balancer: Balancer) -> None:
    """But nothing that is for none."""
    with balancer.capture() as capture:
        send(balancer)
        found = list(capture.packets(2 * FRAMES))
    assert {packet.vip for packet in found} == {"tcp://192.0.2.1:443", "tcp://192.0.2.2:443"}


def test_a_sample(balancer: Balancer) -> None:
    """One of a thousand of a few is likely none."""
    with balancer.capture(every=1_000_000) as capture:
        send(balancer)
        assert not list(capture.packets(until=_once()))


def test_one_at_a_time_and_of_vips_that_are(balancer: Balancer, bpffs_root: Path) -> None:
    """The others get one clear error."""
    with (
        balancer.capture(),
        Balancer.existing(root=bpffs_root) as other,
        pytest.raises(BusyError, match="another process captures"),
        other.capture(),
    ):
        pass
    with balancer.capture():  # it is free again
        pass
    with pytest.raises(NotFoundError, match=r"192.0.2.9"):
        balancer.capture("tcp://192.0.2.9:443")
    with pytest.raises(ConfigError, match="one packet of 0"):
        balancer.capture(every=0)


def test_pcapng_is_read_by_others(balancer: Balancer, tmp_path: Path) -> None:
    """Frame, time, length and comment come back."""
    path = tmp_path / "found.pcapng"
    with balancer.capture() as capture, PcapngFile.create(path) as file:
        send(balancer)
        found = []
        for packet in capture.packets(2 * FRAMES):
            file.write(packet)
            found.append(packet)
    with RawPcapNgReader(str(path)) as reader:
        read_back: list[Any] = list(reader)
    assert [data for data, _ in read_back] == [packet.frame for packet in found]
    for (_, meta), packet in zip(read_back, found, strict=True):
        assert meta.wirelen == packet.length
        assert meta.comments == [packet.comment.encode()]
        stamp = (meta.tshigh << 32 | meta.tslow) / meta.tsresol
        assert abs(stamp - packet.time) < 1e-5
    with pytest.raises(ConfigError, match="can't write"):
        PcapngFile.create(tmp_path / "no" / "such").__enter__()


def test_the_reader_may_be_slow(balancer: Balancer) -> None:
    """A full buffer costs captured packets, and no others."""
    with balancer.capture() as capture, balancer._state.program("balancer") as program:
        before = balancer.counters().outcomes["tcp://192.0.2.1:443"].get("no_route", 0)
        program.test_run(frame("192.0.2.1"), repeat=20_000)
        after = balancer.counters().outcomes["tcp://192.0.2.1:443"]["no_route"]
        assert after - before == 20_000
        assert 0 < len(list(capture.packets(until=_once()))) < 20_000


def test_what_is_for_no_vip_goes_to_the_next_program(balancer: Balancer, bpffs_root: Path) -> None:
    """Here to that of another balancer, which has no way to its backend and drops."""
    wanted = read('name = "other"\n' + CONFIG.replace("192.0.2.2", "192.0.2.3"))
    with Balancer.open(wanted, root=bpffs_root) as other:
        other.apply(wanted)
        assert verdict(balancer, "192.0.2.3") == PASS
        pin = next(bpffs_root.glob("*/@balancer-other/current/balancer"))
        balancer.apply(balancer.spec.model_copy(update={"next": pin}))
        assert verdict(balancer, "192.0.2.3") == DROP
        assert other.counters().outcomes["tcp://192.0.2.3:443"] == {"no_route": 1}
        assert verdict(balancer, "192.0.2.9") == PASS
        balancer.apply(balancer.spec.model_copy(update={"next": None}))
        assert verdict(balancer, "192.0.2.3") == PASS
        other.remove()


def test_a_next_program_that_is_not_there(balancer: Balancer, bpffs_root: Path) -> None:
    """One error, and nothing has changed."""
    before = balancer.spec
    with pytest.raises(NotFoundError, match="nothing"):
        balancer.apply(before.model_copy(update={"next": bpffs_root / "nothing"}))
    assert balancer.spec == before


def test_programs_for_large_frames_follow_on_each_other_alone(
    balancer: Balancer, bpffs_root: Path
) -> None:
    """With a large MTU the balancer's program takes several buffers, and so must the next."""
    for name in ("big", "huge"):
        with IPRoute() as route:
            route.link(
                "add", ifname=f"{name}0", kind="veth", mtu=9000,
                peer={"ifname": f"{name}1", "mtu": 9000},
            )  # fmt: skip
    plain = read('name = "plain"\n' + CONFIG.replace("192.0.2.2", "192.0.2.3"))
    large = plain.model_copy(update={"name": "large", "interfaces": ["big0"], "mode": "native"})
    with (
        passing("big1"),
        passing("huge1"),
        Balancer.open(plain, root=bpffs_root) as one,
        Balancer.open(large, root=bpffs_root) as other,
    ):
        one.apply(plain)
        other.apply(large)
        assert verdict(other, "192.0.2.1") == DROP
        pins = {
            name: next(bpffs_root.glob(f"*/@balancer-{name}/current/balancer"))
            for name in ("plain", "large")
        }
        for wrong, name, section in ((balancer, "large", "xdp,"), (other, "plain", "xdp.frags,")):
            before = wrong.spec
            with pytest.raises(StateError, match="frames of several buffers") as raised:
                wrong.apply(before.model_copy(update={"next": pins[name]}))
            assert f"section {section}" in str(raised.value.hint)
            assert wrong.spec == before
            assert verdict(wrong, "192.0.2.9") == PASS
        # An interface becomes one of large frames: all is loaded anew, and the chain with it.
        wanted = balancer.spec.model_copy(update={"interfaces": ["huge0"], "next": pins["large"]})
        balancer.apply(wanted)
        assert verdict(balancer, "192.0.2.3") == DROP
        assert other.counters().outcomes["tcp://192.0.2.3:443"] == {"no_route": 1}
        other.remove()
        one.remove()


def verdict(balancer: Balancer, vip: str) -> int:
    """What the program in force says."""
    with balancer._state.program("balancer") as program:
        return program.test_run(frame(vip)).retval


def _once() -> Callable[[], bool]:
    """False at first, then True."""
    asked = threading.Event()

    def ask() -> bool:
        if asked.is_set():
            return True
        asked.set()
        return False

    return ask


def test_a_captured_packet_in_words() -> None:
    """As a line shows it."""
    packet = Captured(1.0, 2, "tcp://192.0.2.1:443", "by_ring", "transmit", "web1", 3, b"abc")
    assert packet.comment == "tcp://192.0.2.1:443 by_ring -> web1 (transmit)"
    assert packet.as_json()["frame"] == "616263"
