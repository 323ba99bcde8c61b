"""Network devices of each kind that a balancer may have on its sides, and what is behind them.

A balancer's namespace has a side towards clients and one towards backends. On each, a device of the
kind stands over (or is) one end of a veth pair; the other end is in a namespace of its own. Kinds
are those that the kernel can make, found by making one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from sockway.kernel import BpfObject, Link, Netns, ObjectLayout, XdpMode

_SIOCETHTOOL: Final = 0x8946
_SET_GRO: Final = 0x2C  # ETHTOOL_SGRO in <linux/ethtool.h>
_TUNSETIFF: Final = 0x400454CA
_TAP, _NO_INFO = 0x2, 0x1000  # IFF_TAP, IFF_NO_PI in <linux/if_tun.h>
_ETH_P_ALL: Final = 3
_IPIP: Final = 4

VETHS: Final = ("veth", "veth-gro", "veth-program")
"""A plain one; one whose peer has GRO; one whose peer has an XDP program."""


@dataclass
class Side:
    """One side of a balancer."""

    device: str
    """The balancer's device."""
    address: bytes
    """Link address of that device."""
    send: Callable[[bytes], object]
    """Have a frame come in by it."""
    receive: Callable[[], bytes | None]
    """The next frame that went out by it; None: there is none yet."""
    peer: bytes
    """Link address of what is behind it."""
    far: Netns | None = None
    """Where the other end is; None: in this process."""
    held: list[Any] = field(default_factory=list)

    def count(self, wanted: int, patience: float = 5.0) -> int:
        """Tunnels that came out; waits for so many, or until none comes for so many seconds."""
        found, until = 0, time.monotonic() + patience
        while found < wanted and time.monotonic() < until:
            frame = self.receive()
            if frame is None:
                time.sleep(0.01)
            elif frame[12:14] == b"\x08\x00" and frame[23] == _IPIP:
                found, until = found + 1, time.monotonic() + patience
        return found


def kinds() -> list[str]:
    """The kinds that this kernel can make; all if it can't be tried without root."""
    if os.geteuid() != 0:
        return [*VETHS, *_OVER, "tap"]
    found = list(VETHS)
    for kind in _OVER:
        with Netns.create() as here, Netns.create() as far, contextlib.ExitStack() as stack:
            try:
                stack.enter_context(side(kind, here, far, "try"))
            except NetlinkError:
                continue
            found.append(kind)
    if os.path.exists("/dev/net/tun"):  # noqa: PTH110 - a device
        found.append("tap")
    return found


@contextlib.contextmanager
def side(kind: str, here: Netns, far: Netns, name: str) -> Iterator[Side]:
    """Make a side while the block lasts.

    Args:
        kind: of the device.
        here: the balancer's namespace.
        far: where the other end is to be.
        name: what its devices' names begin with.

    """
    if kind == "tap":
        with _tap(here, name) as made:
            yield made
        return
    with contextlib.ExitStack() as stack:
        here.run(lambda: _pair(far, name))
        peer = far.run(lambda: _up(f"{name}-far"))
        device, heard = f"{name}-near", f"{name}-far"
        if kind in _OVER:
            # The same on both ends where frames are wrapped, and only here where they are not.
            make, both = _OVER[kind]
            device = here.run(lambda: make(name, f"{name}-near", 1))
            if both:
                heard = far.run(lambda: make(name, f"{name}-far", 2))
                peer = far.run(lambda: _up(heard))
        if kind == "veth-gro":
            far.run(lambda: _gro(f"{name}-far"))
        wire = stack.enter_context(far.run(lambda: _wire(heard)))
        address = here.run(lambda: _up(device))
        made = Side(device, address, wire.send, lambda: _received(wire), peer, far)
        if kind == "veth-program":
            made.held.append(stack.enter_context(far.run(lambda: passing(f"{name}-far"))))
        yield made


def passing(device: str) -> Link:
    """Attach a program that passes everything to a device; it goes with the link."""
    with BpfObject.open(ObjectLayout("xdp_pass").source, name="xdp_pass") as made:
        made.load()
        with made.program("pass") as program:
            return program.attach_xdp(socket.if_nametoindex(device), XdpMode.NATIVE)


def _pair(far: Netns, name: str) -> None:
    with IPRoute() as route:
        # Frames of raw sockets have whole checksums; one queue, as in most containers.
        route.link("add", ifname=f"{name}-near", kind="veth", peer=f"{name}-far")
        index = route.link_lookup(ifname=f"{name}-far")[0]
        route.link("set", index=index, net_ns_fd=far.fd)
    _up(f"{name}-near")


def _up(device: str) -> bytes:
    with IPRoute() as route:
        index = route.link_lookup(ifname=device)[0]
        route.link("set", index=index, state="up")
        address = route.get_links(index)[0].get_attr("IFLA_ADDRESS")
    return bytes.fromhex(address.replace(":", ""))


def _make(device: str, **how: Any) -> str:
    with IPRoute() as route:
        route.link("add", ifname=device, **how)
    return device


def _index(device: str) -> int:
    return socket.if_nametoindex(device)


def _bridge(name: str, carrier: str, end: int) -> str:
    del end
    device = _make(f"{name}-br", kind="bridge")
    with IPRoute() as route:
        route.link("set", index=_index(carrier), master=_index(device))
    return device


def _bond(name: str, carrier: str, end: int) -> str:
    del end
    device = _make(f"{name}-bond", kind="bond", bond_mode=1)
    with IPRoute() as route:
        route.link("set", index=_index(carrier), state="down")
        route.link("set", index=_index(carrier), master=_index(device))
        route.link("set", index=_index(device), state="up")
    return device


def _macvlan(name: str, carrier: str, end: int) -> str:
    del end
    return _make(f"{name}-mac", kind="macvlan", link=_index(carrier), macvlan_mode="bridge")


def _vlan(name: str, carrier: str, end: int) -> str:
    del end
    return _make(f"{name}-vlan", kind="vlan", link=_index(carrier), vlan_id=7)


def _vxlan(name: str, carrier: str, end: int) -> str:
    third = 201 if name.startswith("in") else 202
    ends = {1: f"10.{third}.0.1", 2: f"10.{third}.0.2"}
    with IPRoute() as route:
        route.addr("add", index=_index(carrier), address=ends[end], prefixlen=24)
    return _make(
        f"{name}-vx", kind="vxlan", vxlan_id=third, vxlan_port=4789, vxlan_local=ends[end],
        vxlan_group=ends[3 - end],
    )  # fmt: skip


_OVER: Final[dict[str, tuple[Callable[[str, str, int], str], bool]]] = {
    "bridge": (_bridge, False),
    "bond": (_bond, False),
    "macvlan": (_macvlan, False),
    "vlan": (_vlan, True),
    "vxlan": (_vxlan, True),
}
"""Kinds that stand over a veth end: how they are made, and whether the other end has one, too."""


def _gro(device: str) -> None:
    value = ctypes.create_string_buffer(struct.pack("II", _SET_GRO, 1))
    request = struct.pack("16sQ8x", device.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)


def _wire(device: str) -> socket.socket:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    wire.bind((device, _ETH_P_ALL))
    wire.setblocking(False)
    return wire


def _received(wire: socket.socket) -> bytes | None:
    while True:
        try:
            frame, address = wire.recvfrom(16_384)
        except BlockingIOError:
            return None
        if address[2] != socket.PACKET_OUTGOING:
            return frame


@contextlib.contextmanager
def _tap(here: Netns, name: str) -> Iterator[Side]:
    """A device whose frames this process reads and writes."""
    device = f"{name}-tap"

    def make() -> tuple[int, bytes]:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _TAP | _NO_INFO))
        return fd, _up(device)

    fd, address = here.run(make)

    def send(frame: bytes) -> None:
        os.write(fd, frame)

    def receive() -> bytes | None:
        try:
            return os.read(fd, 16_384)
        except BlockingIOError:
            return None

    try:
        yield Side(device, address, send, receive, bytes.fromhex("020000000099"))
    finally:
        os.close(fd)
