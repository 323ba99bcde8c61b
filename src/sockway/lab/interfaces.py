"""What a lab sets in its namespaces: links, addresses, routes, the kernel's switches.

All of it works on the network namespace that the calling thread is in.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from sockway.kernel import BpfObject, XdpMode

_SIOCETHTOOL: Final = 0x8946
_OFFLOADS: Final = {"tx checksums": 0x17, "GRO": 0x2C, "TSO": 0x1F, "GSO": 0x24}
"""ETHTOOL_STXCSUM, ETHTOOL_SGRO, ETHTOOL_STSO, ETHTOOL_SGSO of <linux/ethtool.h>."""


@contextlib.contextmanager
def netlink() -> Iterator[Any]:
    """The kernel's links, addresses and routes here."""
    # Here, for it takes longer to import than all else together.
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as route:
        yield route


def settle_host() -> None:
    """A host's switches, before it has a link."""
    # Nobody else has its addresses; to look for that takes a second in which nothing gets through.
    write("net/ipv6/conf/default/accept_dad", "0")


def settle_router() -> None:
    """A router's switches."""
    settle_host()
    with netlink() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")
    for path, value in {
        "net/ipv4/ip_forward": "1",
        "net/ipv6/conf/all/forwarding": "1",
        "net/ipv4/fib_multipath_hash_policy": "1",
        "net/ipv6/fib_multipath_hash_policy": "1",
        "net/ipv4/conf/all/rp_filter": "0",
        "net/ipv4/conf/default/rp_filter": "0",
    }.items():
        write(path, value)


def settle_link(route: Any, index: int, address4: str, address6: str, mtu: int) -> None:
    """Addresses and MTU of a link; it is up then."""
    from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD  # noqa: PLC0415 - as in netlink()

    route.link("set", index=index, mtu=mtu)
    route.addr("add", index=index, address=address4, prefixlen=24)
    # Without waiting whether somebody else has it.
    route.addr("add", index=index, address=address6, prefixlen=64, flags=IFA_F_NODAD)
    route.link("set", index=index, state="up")


def add_routes(routes: Sequence[tuple[str, str]]) -> None:
    """Routes to networks by way of gateways."""
    with netlink() as route:
        for network, gateway in routes:
            family = socket.AF_INET6 if ":" in network else socket.AF_INET
            route.route("add", dst=network, gateway=gateway, family=family)


def write(path: str, value: str) -> None:
    """Set one of the kernel's switches."""
    Path("/proc/sys", path).write_text(value, encoding="ascii")


def switch_off(interface: str) -> None:
    """No offloads: a frame that XDP sends has lost what the sender left to the hardware."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in _OFFLOADS.values():
            value = bytearray(struct.pack("II", command, 0))
            held = (ctypes.c_char * len(value)).from_buffer(value)
            request = struct.pack("16sQ8x", interface.encode(), ctypes.addressof(held))
            with contextlib.suppress(OSError):
                fcntl.ioctl(sock, _SIOCETHTOOL, request)


def take_xdp_frames(index: int) -> None:
    """Have a veth take what XDP sends at its other end: it does so with a program only."""
    source = resources.files("sockway.kernel").joinpath("objects", "xdp_pass.bpf.o").read_bytes()
    with BpfObject.open(source, name="xdp_pass") as made:
        made.load()
        _attach_for_good(made, index)


def _attach_for_good(made: BpfObject, index: int) -> None:
    """By netlink and not by a link: it lives as long as the interface."""
    with netlink() as route, made.program("pass") as program:
        native = int(XdpMode.NATIVE)
        route.link("set", index=index, xdp_fd=program.fd, xdp_flags=native)


__all__ = [
    "add_routes", "netlink", "settle_host", "settle_link", "settle_router", "switch_off",
    "take_xdp_frames", "write",
]  # fmt: skip
