"""What the kernel says of network devices, as far as XDP on them matters.

Linux 6.3 and later tell what a device's driver can do (generic netlink, family `netdev`). It is not
fixed: many drivers take redirected frames only while a program is attached to them, and a veth
device takes them while its peer has a program or GRO.
"""

from __future__ import annotations

import contextlib
import enum
import errno
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sockway.errors import KernelError
from sockway.kernel.ffi import error_of
from sockway.kernel.link import XdpMode
from sockway.kernel.program import Program

_FAMILY: Final = "netdev"
_DEV_GET: Final = 1  # NETDEV_CMD_DEV_GET in <linux/netdev.h>
_ETHERNET: Final = {1, 772}  # ARPHRD_ETHER, ARPHRD_LOOPBACK in <linux/if_arp.h>
_ADDRESS: Final = 6
_IF_NO_OTHER: Final = 1  # XDP_FLAGS_UPDATE_IF_NOEXIST in <linux/if_link.h>
_MODES: Final = {"xdp": "native", "xdpgeneric": "generic", "xdpoffload": "offloaded",
                 "xdpmulti": "native"}  # fmt: skip


class XdpFeature(enum.IntFlag):
    """What a device can do, by the numbers of `enum netdev_xdp_act` in <linux/netdev.h>."""

    BASIC = 1
    """Native mode: it passes, drops and sends back."""
    REDIRECT = 2
    """It hands frames to other devices."""
    TRANSMIT = 4
    """It takes frames that others redirect to it."""
    SEVERAL = 32
    """It receives frames of several buffers."""
    TRANSMIT_SEVERAL = 64
    """It takes redirected frames of several buffers."""


@dataclass(frozen=True)
class Device:
    """A network device of this network namespace."""

    index: int
    name: str
    kind: str
    """`veth`, `bridge`, `vlan`, ...; empty where the kernel has no name for it: hardware."""
    ethernet: bool
    """Whether its frames begin with an Ethernet header."""
    address: bytes
    """Of the link; six octets of 0 where it has none."""
    mtu: int
    up: bool
    mode: str | None
    """How XDP runs on it: `native`, `generic`, `offloaded`; None: it does not."""
    program: int
    """Number of the XDP program on it; 0: none."""
    features: XdpFeature | None
    """None: the kernel does not tell (before Linux 6.3)."""
    peer_has_program: bool | None
    """Of a veth device: whether an XDP program is on its other end; None: it can't be seen."""


def xdp_features() -> dict[int, XdpFeature] | None:
    """Return what each device of this network namespace can do, by its index.

    Returns:
        None where the kernel does not tell: before Linux 6.3.

    Raises:
        KernelError: the kernel can't be asked.

    """
    from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST  # noqa: PLC0415 - slow to import
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415
    from pyroute2.netlink.generic import GenericNetlinkSocket  # noqa: PLC0415

    kind = _message()
    try:
        with _asking(), GenericNetlinkSocket() as sock:
            sock.bind(_FAMILY, kind)
            question = kind()
            question["cmd"], question["version"] = _DEV_GET, 1
            answers = sock.nlm_request(
                question, msg_type=sock.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP
            )
            return {
                int(each.get_attr("NETDEV_A_DEV_IFINDEX")): XdpFeature(
                    each.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0
                )
                for each in answers
            }
    except NetlinkError:
        return None


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Raise the system's refusal of a netlink socket as a KernelError."""
    try:
        yield
    except OSError as error:
        raise error_of(error.errno or errno.EIO, "ask the kernel for network devices") from error


def _message() -> Any:
    """Return the class of the family's messages about devices."""
    from pyroute2.netlink import genlmsg  # noqa: PLC0415

    class Message(genlmsg):  # type: ignore[misc] # pyroute2 has no types
        nla_map = (
            ("NETDEV_A_DEV_UNSPEC", "none"),
            ("NETDEV_A_DEV_IFINDEX", "uint32"),
            ("NETDEV_A_DEV_PAD", "none"),
            ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        )

    return Message


def devices(indices: Iterable[int]) -> dict[int, Device]:
    """Return these devices as they are now, by index; those that are gone are left out.

    Raises:
        KernelError: the kernel can't be asked.

    """
    from pyroute2 import IPRoute  # noqa: PLC0415

    wanted = set(indices)
    if not wanted:
        return {}
    features = xdp_features()
    found = {}
    with _asking(), IPRoute() as route:
        for index in wanted:
            link = _link(route, index=index)
            if link is not None:
                known = None if features is None else features.get(index, XdpFeature(0))
                found[index] = _device(route, link, known)
    return found


def _link(route: Any, **which: int) -> Any:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    try:
        answer = route.link("get", **which)
    except NetlinkError:  # it is gone, or of a namespace that this process may not look into
        return None
    return answer[0] if answer else None


def _device(route: Any, link: Any, features: XdpFeature | None) -> Device:
    info = link.get_attr("IFLA_LINKINFO")
    kind = str((info.get_attr("IFLA_INFO_KIND") if info else None) or "")
    return Device(
        index=int(link["index"]),
        name=str(link.get_attr("IFLA_IFNAME")),
        kind=kind,
        ethernet=int(link["ifi_type"]) in _ETHERNET,
        address=_octets(link.get_attr("IFLA_ADDRESS")),
        mtu=int(link.get_attr("IFLA_MTU")),
        up=link.get_attr("IFLA_OPERSTATE") in {"UP", "UNKNOWN"},
        mode=xdp_mode(link),
        program=xdp_program(link),
        features=features,
        peer_has_program=_peer_has_program(route, link) if kind == "veth" else None,
    )


def _octets(address: str | None) -> bytes:
    raw = bytes.fromhex((address or "").replace(":", ""))
    return raw if len(raw) == _ADDRESS else bytes(_ADDRESS)


def _peer_has_program(route: Any, link: Any) -> bool | None:
    """Look at a veth device's other end, which may be in another namespace."""
    index, namespace = link.get_attr("IFLA_LINK"), link.get_attr("IFLA_LINK_NETNSID")
    if index is None:
        return None
    other = {} if namespace is None else {"if_netnsid": int(namespace)}
    peer = _link(route, index=int(index), **other)
    return None if peer is None else xdp_mode(peer) == "native"


def xdp_mode(link: Any) -> str | None:
    """Return how XDP runs on a link of `pyroute2.IPRoute.get_links`; None: it does not."""
    xdp = link.get_attr("IFLA_XDP")
    told = xdp.get_attr("IFLA_XDP_ATTACHED") if xdp else None
    return _MODES.get(told) if told else None


def xdp_program(link: Any) -> int:
    """Return the number of the XDP program on a link; 0: none."""
    xdp = link.get_attr("IFLA_XDP")
    return int((xdp.get_attr("IFLA_XDP_PROG_ID") if xdp else None) or 0)


def refusal(ifindex: int, program: Program, mode: XdpMode) -> KernelError | None:
    """Ask why a device does not take a program, in the kernel's or driver's own words.

    A link is refused with a number alone; netlink says more. So it is tried that way, too: should
    the device take the program after all, it is taken off at once.

    Returns:
        The refusal; None: there is none now.

    Raises:
        KernelError: the kernel can't be asked, or the program can't be taken off again.

    """
    from pyroute2 import IPRoute  # noqa: PLC0415
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    def put(route: Any, fd: int, flags: int) -> None:
        attributes = [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", flags)]
        route.link("set", index=ifindex, xdp={"attrs": attributes})

    with _asking(), IPRoute(ext_ack=True) as route:
        try:
            put(route, program.fd, int(mode) | _IF_NO_OTHER)
        except NetlinkError as error:
            told = str(error.args[1]) if len(error.args) > 1 else ""
            refused = error_of(int(error.code), f"attach XDP to interface {ifindex}")
            return KernelError(told or refused.message)
        try:
            put(route, -1, int(mode))
        except NetlinkError as error:
            raise error_of(int(error.code), f"take XDP off interface {ifindex}") from error
    return None


__all__ = ["Device", "XdpFeature", "devices", "refusal", "xdp_features", "xdp_mode", "xdp_program"]
