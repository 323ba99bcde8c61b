"""Whatever devices a balancer has on its sides, no packet is lost between them unseen."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from sockway.balancer import Balancer, attach, read
from sockway.balancer.diagnosis import diagnose
from sockway.balancer.modes import obstacle_now
from sockway.balancer.redirects import obstacles
from sockway.errors import KernelError, SockwayError, StateError
from sockway.kernel import Netns, Program, XdpMode
from sockway.kernel.netdev import Device, XdpFeature, devices
from tests.balancer.devices import VETHS, Side, kinds, passing, side

pytestmark = pytest.mark.root

KINDS = kinds()
NATIVE_IN = {"veth-program", "tap"}
NATIVE_OUT = {"veth-program", "veth-gro", "tap"}
PACKETS = 40
VIP = "192.0.2.1"

CONFIG = """
interfaces = [{interfaces}]
mode = "{mode}"
secret = "a secret of the fleet"

[pool.web]
source4 = "10.0.0.0/24"
[pool.web.backends]
web1 = "10.9.0.11"

[[vip]]
listen = "udp://192.0.2.1:443"
pool = "web"
"""


@dataclass
class Site:
    """A balancer's namespace, with a side towards clients and one towards backends."""

    here: Netns
    clients: Side
    backends: Side
    root: Path

    def config(self, mode: str = "auto", *more: str) -> str:
        """The configuration of a balancer there."""
        names = ", ".join(f'"{each}"' for each in (self.clients.device, *more))
        return CONFIG.format(interfaces=names, mode=mode)

    def send(self, packets: int = PACKETS) -> None:
        """Have packets for the VIP come in."""
        for number in range(packets):
            # With whole checksums: a bridge drops others.
            packet = IP(src=f"198.51.100.{number + 1}", dst=VIP) / UDP(sport=4000, dport=443)
            ends = Ether(dst=self.clients.address.hex(":"), src=self.clients.peer.hex(":"))
            self.clients.send(bytes(ends / packet / b"a datagram"))


Enter = Callable[..., Site]


@pytest.fixture
def site(bpffs_root: Path) -> Iterator[Enter]:
    """Make a site of two kinds, and be inside it."""
    with contextlib.ExitStack() as stack:

        def make(way_in: str, way_out: str) -> Site:
            here, clients, backends = (stack.enter_context(Netns.create()) for _ in range(3))
            made = Site(
                here,
                stack.enter_context(side(way_in, here, clients, "in")),
                stack.enter_context(side(way_out, here, backends, "out")),
                bpffs_root,
            )
            stack.enter_context(here.entered())
            route_by(made.backends)
            return made

        yield make


def route_by(out: Side) -> None:
    """Reach the backend by this side, whatever it was reached by before."""
    with IPRoute() as route:
        index = socket.if_nametoindex(out.device)
        for old in route.get_addr(family=socket.AF_INET):
            if old.get_attr("IFA_ADDRESS") == "10.9.0.1":
                route.addr("del", index=old["index"], address="10.9.0.1", prefixlen=24)
        route.addr("add", index=index, address="10.9.0.1", prefixlen=24)
        route.neigh("replace", dst="10.9.0.11", lladdr=out.peer.hex(":"), ifindex=index, state=128)


@contextlib.contextmanager
def balancer_of(site: Site, mode: str = "auto", *more: str) -> Iterator[Balancer]:
    """A balancer there, removed in the end."""
    spec = read(site.config(mode, *more))
    with Balancer.open(spec, root=site.root) as made:
        try:
            made.apply(spec)
            yield made
        finally:
            if made._opened.directory.exists():
                made.remove()


def test_more_than_veth_is_tried() -> None:
    """Else the property below would say little."""
    assert set(VETHS) < set(KINDS)


@pytest.mark.parametrize("way_in", KINDS)
def test_all_packets_arrive(site: Enter, way_in: str) -> None:
    """With `auto`, by every combination of devices; and each interface has a mode and a reason."""
    made = site(way_in, "veth-program")
    with contextlib.ExitStack() as stack, balancer_of(made) as balancer:
        for number, way_out in enumerate(KINDS):
            far = stack.enter_context(Netns.create())
            out = stack.enter_context(side(way_out, made.here, far, f"o{number}"))
            route_by(out)
            assert balancer.refresh() == 1
            balancer.apply(balancer.spec)
            made.send()
            assert out.count(PACKETS) == PACKETS, way_out
            choice = balancer.modes[made.clients.device]
            assert attach.mode_of(made.clients.device) == choice.mode
            assert choice.reason
            if "bond" not in {way_in, way_out}:  # what it can do is what its devices can do
                native = way_in in NATIVE_IN and way_out in NATIVE_OUT
                assert (choice.mode == "native") == native, way_out
        counters = balancer.counters()
        assert counters.sent == PACKETS * len(KINDS)
        assert counters.undelivered is not None
        assert counters.undelivered.frames == 0


@pytest.mark.parametrize("way", [kind for kind in KINDS if kind in {"veth-program", "tap"}])
def test_back_out_of_the_same_device(site: Enter, way: str) -> None:
    """Backends behind the interface that packets come in by."""
    made = site(way, "bridge" if "bridge" in KINDS else "veth")
    route_by(made.clients)
    with balancer_of(made) as balancer:
        assert balancer.modes[made.clients.device].mode == "native"
        made.send()
        assert made.clients.count(PACKETS) == PACKETS


@pytest.mark.parametrize("way", ["veth", "veth-gro"])
def test_back_out_of_a_veth_device_whose_peer_has_no_program(site: Enter, way: str) -> None:
    """XDP_TX would lose everything, with GRO on the peer as well."""
    made = site(way, "veth-program")
    route_by(made.clients)
    with balancer_of(made) as balancer:
        assert balancer.modes[made.clients.device].mode == "generic"
        assert "needs an XDP program on its veth peer" in (
            balancer.modes[made.clients.device].reason
        )
        made.send()
        assert made.clients.count(PACKETS) == PACKETS


def test_native_mode_that_would_lose_packets_is_refused(site: Enter) -> None:
    """One error names the device, the reason and the way out; nothing is attached."""
    made = site("veth-program", "veth")
    spec = read(made.config("native"))
    with Balancer.open(spec, root=made.root) as balancer:
        with pytest.raises(StateError, match="in-near can't be native: out-near") as raised:
            balancer.apply(spec)
        assert "neither an XDP program nor GRO" in raised.value.message
        assert 'mode = "auto"' in (raised.value.hint or "")
        assert balancer.interfaces == []
        assert attach.mode_of("in-near") is None
        balancer.remove()


def _forced(balancer: Balancer, site: Site) -> None:
    """Attach in the driver whatever was chosen, as Sockway did before it looked."""
    directory = balancer._state.directory
    attach.detach(directory, site.clients.device)
    with balancer._state.program("balancer") as program:
        attach.attach(directory, site.clients.device, program, "native")


@pytest.mark.parametrize("way_out", [kind for kind in KINDS if kind not in {
    "veth-gro", "veth-program", "tap", "bond"}])  # fmt: skip
def test_what_is_lost_is_counted_and_told(site: Enter, way_out: str) -> None:
    """Redirects that fail are counted by device and reason, and the doctor names them."""
    made = site("veth-program", way_out)
    with balancer_of(made) as balancer:
        _forced(balancer, made)
        made.send()
        assert made.backends.count(1, patience=0.5) == 0
        counters = balancer.counters()
        assert counters.sent == PACKETS
        assert counters.undelivered is not None
        assert counters.undelivered.frames == PACKETS
        (way,) = counters.undelivered.ways
        assert (way.way_in, way.way_out) == (made.clients.device, made.backends.device)
        assert way.reason
        assert balancer.losing()
        found = {f.name.partition(": ")[2]: f for f in diagnose(made.root)}
        assert not found["redirects"].ok
        assert f"{PACKETS} from in-near to {made.backends.device}" in found["redirects"].detail
        assert "in-near loses packets: " in found["XDP mode"].detail
        balancer.apply(balancer.spec)
        made.send()
        assert made.backends.count(PACKETS) == PACKETS


def test_what_is_lost_on_the_way_back_is_counted(site: Enter) -> None:
    """XDP_TX to a veth peer without a program or GRO."""
    made = site("veth", "veth-program")
    route_by(made.clients)
    with balancer_of(made) as balancer:
        _forced(balancer, made)
        made.send()
        assert made.clients.count(1, patience=0.5) == 0
        undelivered = balancer.counters().undelivered
        assert undelivered is not None
        assert undelivered.frames == PACKETS
        assert {(w.way_in, w.way_out) for w in undelivered.ways} == {("in-near", "in-near")}


def test_it_is_counted_without_a_process_and_over_new_programs(site: Enter) -> None:
    """The count stays when the programs are loaded anew, and goes with the balancer."""
    made = site("veth-program", "veth")
    with balancer_of(made) as balancer:
        balancer.close()  # nobody holds a descriptor from here on
        with Balancer.existing(root=made.root) as other:
            _forced(other, made)
        made.send()
        with Balancer.existing(root=made.root) as other:
            assert _lost(other) == PACKETS
            other.apply(read(made.config().replace("of the fleet", "of another")))
            _forced(other, made)
            made.send(3)
            assert _lost(other) == PACKETS + 3
            directory = other._state.directory
            assert list(directory.glob("redirects-*/link-*"))
            other.remove()
            assert not directory.exists()
    assert not list(made.root.glob("**/link-*"))


def _lost(balancer: Balancer) -> int:
    undelivered = balancer.counters().undelivered
    assert undelivered is not None
    return undelivered.frames


def test_what_others_lose_is_not_counted(site: Enter) -> None:
    """Another program's redirects, on the same host and between the same devices."""
    made = site("veth-program", "veth")
    with balancer_of(made) as balancer:
        with Program.redirecting(socket.if_nametoindex("out-near")) as other:
            other.test_run(bytes(60), repeat=10, live_frames=True)
        undelivered = balancer.counters().undelivered
        assert undelivered is not None
        assert undelivered.frames == 0


def test_it_is_chosen_again_when_next_hops_change(site: Enter) -> None:
    """A route by another device: `refresh` leaves native mode before packets go there."""
    made = site("veth-program", "veth-program")
    with balancer_of(made) as balancer, contextlib.ExitStack() as stack:
        assert balancer.modes["in-near"].mode == "native"
        assert balancer.refresh() == 0
        far = stack.enter_context(Netns.create())
        other = stack.enter_context(side("veth", made.here, far, "new"))
        first, made.backends = made.backends, other
        route_by(other)
        assert balancer.refresh() == 1
        assert attach.mode_of("in-near") == "generic"
        assert "new-near" in balancer.modes["in-near"].reason
        made.send()
        assert other.count(PACKETS) == PACKETS
        route_by(first)
        balancer.refresh()
        balancer.apply(balancer.spec)
        assert attach.mode_of("in-near") == "native"
        made.send()
        assert first.count(PACKETS) == PACKETS


def test_a_backend_behind_another_device(site: Enter) -> None:
    """An `apply` that brings it changes the mode, and no packet is lost from then on."""
    made = site("veth-program", "veth-program")
    with balancer_of(made) as balancer, contextlib.ExitStack() as stack:
        far = stack.enter_context(Netns.create())
        other = stack.enter_context(side("veth", made.here, far, "new"))
        with IPRoute() as route:
            index = socket.if_nametoindex(other.device)
            route.addr("add", index=index, address="10.10.0.1", prefixlen=24)
            route.neigh(
                "add", dst="10.10.0.11", lladdr=other.peer.hex(":"), ifindex=index, state=128
            )
        more = made.config().replace('"10.9.0.11"', '"10.9.0.11"\nweb2 = "10.10.0.11"')
        balancer.apply(read(more))
        assert balancer.modes["in-near"].mode == "generic"
        made.send()
        assert made.backends.count(PACKETS, 0.5) + other.count(PACKETS, 0.5) == PACKETS


def test_a_failed_apply_leaves_modes_as_they_were(site: Enter) -> None:
    """It takes an interface to generic mode first, and then another takes no program at all."""
    made = site("veth-program", "veth-program")
    with balancer_of(made) as balancer, contextlib.ExitStack() as stack:
        far = stack.enter_context(Netns.create())
        other = stack.enter_context(side("veth", made.here, far, "new"))
        with IPRoute() as route:
            index = socket.if_nametoindex(other.device)
            route.addr("add", index=index, address="10.10.0.1", prefixlen=24)
            route.neigh(
                "add", dst="10.10.0.11", lladdr=other.peer.hex(":"), ifindex=index, state=128
            )
            route.link("add", ifname="low", kind="veth", peer="low-far")
            low = socket.if_nametoindex("low")
            route.link("add", ifname="upper", kind="macvlan", link=low, macvlan_mode="bridge")
        passes = stack.enter_context(Program.passing())
        upper = socket.if_nametoindex("upper")
        stack.enter_context(passes.attach_xdp(upper, XdpMode.GENERIC))
        more = made.config("auto", "low").replace('"10.9.0.11"', '"10.9.0.11"\nweb2 = "10.10.0.11"')
        before = balancer.modes["in-near"]
        with pytest.raises(KernelError, match="low takes no XDP program"):
            balancer.apply(read(more))
        assert balancer.interfaces == ["in-near"]
        assert attach.mode_of("in-near") == "native"
        assert balancer.modes == {"in-near": before}
        made.send()
        assert made.backends.count(PACKETS) == PACKETS


def _device(index: int, features: XdpFeature, mode: str | None) -> Device:
    return Device(
        index, f"eth{index}", "", ethernet=True, address=bytes(6), mtu=1500, up=True, mode=mode,
        program=0, features=features, peer_has_program=None,
    )  # fmt: skip


def test_only_interfaces_that_become_native_are_excused() -> None:
    """One that stays generic never learns to take redirected frames: no mode flaps for it."""
    way_in = _device(1, XdpFeature.BASIC | XdpFeature.REDIRECT, "generic")
    way_out = _device(2, XdpFeature.BASIC | XdpFeature.REDIRECT, "generic")
    now = {each.index: each for each in (way_in, way_out)}
    both = obstacle_now(way_in, now, [way_out], [way_in, way_out], several=False)
    assert both is None
    alone = obstacle_now(way_in, now, [way_out], [way_in], several=False)
    assert alone is not None
    assert "eth2 does not take redirected frames" in alone
    assert obstacle_now(way_in, {2: way_out}, [way_out], [way_in], several=False) == "it is gone"


_WITHOUT_DESCRIPTORS = """
import resource
from sockway.errors import KernelError
from sockway.kernel.netdev import devices
assert devices([1])
resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    devices([1])
except KernelError as error:
    print(error.message)
"""


def test_a_refused_socket_is_an_error_of_ours() -> None:
    """Without a file descriptor left, the kernel can't be asked: one line says so."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_DESCRIPTORS], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("can't ask the kernel for network devices: ")


def test_trying_agrees_with_what_the_kernel_tells(site: Enter) -> None:
    """A frame that is sent to find out finds the same as Linux 6.3 and later tell."""
    assert KINDS
    for kind in KINDS:
        made = site("veth", kind)
        index = socket.if_nametoindex(made.backends.device)
        device = devices([index])[index]
        tried = obstacles([device])
        if device.features is not None and kind != "bond":
            assert bool(device.features & XdpFeature.TRANSMIT) == (not tried), kind


def test_the_drivers_words(site: Enter) -> None:
    """What the kernel says of a refusal is the reason, not a number."""
    made = site("veth-program", "veth-program")
    with IPRoute() as route:
        route.link(
            "add", ifname="wide", kind="veth", num_rx_queues=4, num_tx_queues=4,
            peer={"ifname": "narrow", "num_rx_queues": 1, "num_tx_queues": 1},
        )  # fmt: skip
    with passing("wide"), balancer_of(made, "auto", "narrow") as balancer:
        assert "number of rx queues" in balancer.modes["narrow"].reason
        assert balancer.modes["narrow"].mode == "generic"
        balancer.apply(balancer.spec)
        assert "number of rx queues" in balancer.modes["narrow"].reason
        with pytest.raises(SockwayError, match=r"narrow .*number of rx queues"):
            balancer.apply(read(made.config("native", "narrow")))
        assert attach.mode_of("narrow") == "generic"


def test_a_device_without_ethernet(site: Enter) -> None:
    """Frames that begin with an IP header are no balancer's; the error says so."""
    made = site("veth-program", "veth-program")
    with IPRoute() as route:
        route.link("add", ifname="bare", kind="tuntap", mode="tun")
    with (
        pytest.raises(StateError, match=r"bare .*has no Ethernet"),
        balancer_of(made, "auto", "bare"),
    ):
        pass


@pytest.mark.parametrize(("mtu", "several"), [(1500, False), (3506, False), (3507, True)])
def test_frames_of_several_buffers(site: Enter, mtu: int, several: bool) -> None:  # noqa: FBT001
    """The program for them is taken where the driver takes no other, by the driver's word."""
    made = site("veth-program", "veth-program")
    for namespace, name in ((made.here, "in-near"), (made.clients.far, "in-far")):
        assert namespace is not None
        namespace.run(lambda name=name: _set_mtu(name, mtu))  # type: ignore[misc]
    with balancer_of(made) as balancer:
        assert balancer.modes["in-near"].mode == "native"
        assert balancer._state.is_jumbo == several
        made.send()
        assert made.backends.count(PACKETS) == PACKETS


def _set_mtu(name: str, mtu: int) -> None:
    with IPRoute() as route:
        route.link("set", index=socket.if_nametoindex(name), mtu=mtu)
