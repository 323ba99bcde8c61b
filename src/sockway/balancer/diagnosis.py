"""What operators lose days on, looked at on a balancer and on a backend: `sockway doctor`.

Each finding is a question with an answer and a way out, as those about the kernel are.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any, Final

from sockway.balancer import host as hosts
from sockway.balancer.balancer import Balancer
from sockway.balancer.config import headers_of
from sockway.balancer.host import Host
from sockway.balancer.layout import IpAddress
from sockway.balancer.modes import Choice
from sockway.balancer.nexthop import WayOut, ways_out
from sockway.balancer.redirects import Failures
from sockway.balancer.spec import BalancerSpec, PoolSpec, QuicIdSpec
from sockway.balancer.state import CURRENT, PREFIX, directory_of
from sockway.errors import SockwayError
from sockway.kernel.features import Feature
from sockway.kernel.netdev import devices

_SIOCETHTOOL: Final = 0x8946
_GET_GRO: Final = 0x2B  # ETHTOOL_GGRO, ETHTOOL_GFLAGS, ETH_FLAG_LRO of <linux/ethtool.h>
_GET_FLAGS: Final = 0x25
_LRO: Final = 1 << 15
_STRICT: Final = 1
_SHOWN: Final = 5
_INTERNET: Final = 1500  # octets of IP that clients' packets have at the most


@dataclass(frozen=True)
class _Link:
    name: str
    mtu: int
    up: bool
    generic: bool
    """XDP runs behind the driver."""


def diagnose(root: Path | str | None = None) -> list[Feature]:
    """All findings about the balancers and backends of the current network namespace.

    Raises:
        SockwayError: the kernel can't be asked about its network.

    """
    here = directory_of("any", root).parent
    found: list[Feature] = []
    with contextlib.suppress(PermissionError):
        for directory in sorted(here.glob(f"{PREFIX}*")):
            if (directory / CURRENT).is_symlink():
                found += _of_balancer(directory.name.removeprefix(PREFIX), root)
        for directory in sorted(here.glob(f"{hosts.PREFIX}*")):
            found += _of_backend(directory.name.removeprefix(hosts.PREFIX), root)
    return found


def _of_balancer(name: str, root: Path | str | None) -> Iterator[Feature]:
    what = f"balancer {name}"
    try:
        balancer = Balancer.existing(name, root=root)
    except SockwayError as error:
        yield _finding(what, error.message, "its state", error.hint or "")
        return
    with balancer:
        spec, interfaces = balancer.spec, balancer.interfaces
        chosen, losing = balancer.modes, balancer.losing()
        undelivered = balancer.counters().undelivered
    links = _links(interfaces)
    machines = {n: b for pool in spec.pool.values() for n, b in pool.backends.items()}
    ways = ways_out((b.address for b in machines.values() if not b.local), patience=0.5)
    silent = [
        f"{n} ({b.address})"
        for n, b in machines.items()
        if not b.local and ((way := ways.get(b.address)) is None or way.next_hop is None)
    ]
    yield _finding(
        f"{what}: next hops",
        f"unknown for {_listed(silent)}" if silent else "",
        "getting packets to backends",
        "`ip route get ADDRESS` and `ip neigh`: is there a route, and does the next hop answer?",
        good=f"known for {len(machines)} backends",
    )
    yield _mtu(what, spec.pool.values(), ways, links)
    yield from _interfaces(what, spec.interfaces, interfaces, links)
    yield _mode(what, spec, links, chosen, losing)
    yield _undelivered(what, undelivered)
    yield from _offloads(what, links)
    if spec.quic_ids:
        yield _finding(
            f"{what}: connection IDs",
            ""
            if any(vip.stamps and vip.protocol == socket.IPPROTO_UDP for vip in spec.vip)
            else "not read",
            "QUIC connections that survive changes of backends and balancers",
            "`stamps = true` on the udp:// VIPs",
            good=", ".join(_ids(each) for each in spec.quic_ids),
        )


def _ids(spec: QuicIdSpec) -> str:
    """How connection IDs of a configuration are read."""
    if not spec.blocks:
        return f"{spec.name} in clear"
    plural = "" if spec.blocks == 1 else "s"
    return f"{spec.name} by AES in the program ({spec.blocks} block{plural})"


def _mtu(what: str, pools: Iterable[PoolSpec], ways: Any, links: Sequence[_Link]) -> Feature:
    """Whether the largest packet of the Internet's fits into the tunnels."""
    largest = min((link.mtu for link in links), default=_INTERNET)
    largest = min(largest, _INTERNET)
    narrow: dict[str, int] = {}
    for pool in pools:
        for name, backend in pool.backends.items():
            way: WayOut | None = ways.get(backend.address)
            mtu = pool.mtu or (way.mtu if way else 0)
            needed = largest + headers_of(pool, backend.address.version)
            if not backend.local and 0 < mtu < needed:
                narrow[f"{name} ({mtu} of {needed})"] = needed
    return _finding(
        f"{what}: MTU",
        f"too small for a full packet in its tunnel: {_listed(list(narrow))}" if narrow else "",
        "packets of full size; without it clients are told to send smaller ones, or lose them",
        f"`ip link set dev DEVICE mtu {max(narrow.values(), default=0)}` on the way to the "
        "backends, if the network takes it; else lower the MTU that clients see (advertised MSS)",
        good=f"{largest} octets fit into each tunnel",
    )


def _interfaces(
    what: str, wanted: Sequence[str], attached: Sequence[str], links: Sequence[_Link]
) -> Iterator[Feature]:
    missing = [name for name in wanted if name not in attached]
    gone = [name for name in attached if name not in {link.name for link in links}]
    down = [link.name for link in links if not link.up]
    trouble = missing or gone or down
    yield _finding(
        f"{what}: interfaces",
        f"not attached or not up: {_listed(trouble)}" if trouble else "",
        "getting packets at all",
        "`ip link set dev DEVICE up`, then apply the configuration again",
        good=", ".join(attached) or "attached to none",
    )


def _mode(
    what: str,
    spec: BalancerSpec,
    links: Sequence[_Link],
    chosen: Mapping[str, Choice],
    losing: Mapping[str, str],
) -> Feature:
    """Whether XDP runs in the driver, and whether it may."""
    if losing:
        told = "; ".join(f"{name} loses packets: {losing[name]}" for name in losing)
        return _finding(
            f"{what}: XDP mode",
            told,
            "getting packets to backends",
            "apply the configuration again"
            if spec.mode != "native"
            else 'mode = "auto", and apply the configuration again',
        )
    generic = [link.name for link in links if link.generic]
    reasons = "; ".join(
        f"{name}: {chosen[name].reason}" if name in chosen else name for name in generic
    )
    return _finding(
        f"{what}: XDP mode",
        f"generic on {reasons}" if generic else "",
        "speed: behind the driver each packet costs several times as much",
        "mend what is named there and apply the configuration again, if that speed is needed",
        good="native" if links else "",
    )


def _undelivered(what: str, found: Failures | None) -> Feature:
    """Whether devices took what the program sent."""
    trouble = ""
    if found is None:
        trouble = "not counted: see `redirect failures` above"
    elif found.frames:
        ways = [
            f"{each.frames:,} from {each.way_in} to {each.way_out}"
            + (f" ({each.reason})" if each.reason else "")
            for each in found.ways
        ]
        trouble = f"{found.frames:,} frames were lost behind the program: {_listed(ways)}"
    return _finding(
        f"{what}: redirects",
        trouble,
        "getting packets to backends",
        "apply the configuration again: the mode is chosen anew; else see to the device: is it "
        "up, has it the MTU, are its queues full?",
        good="none failed",
    )


def _offloads(what: str, links: Sequence[_Link]) -> Iterator[Feature]:
    """What merges packets before they are seen makes them larger than the path bears."""
    merging = []
    for link in links:
        if _ethtool(link.name, _GET_FLAGS) & _LRO:
            merging.append(f"{link.name} lro")
        if link.generic and _ethtool(link.name, _GET_GRO):
            merging.append(f"{link.name} gro")
    yield _finding(
        f"{what}: offloads",
        f"packets are merged before they are forwarded: {_listed(merging)}" if merging else "",
        "packets that fit into the tunnel",
        "; ".join(f"ethtool -K {each} off" for each in merging),
        good="none in the way",
    )


def _of_backend(name: str, root: Path | str | None) -> Iterator[Feature]:
    what = f"backend {name}"
    host = Host.existing(name, root=root)
    interfaces = host.interfaces
    try:
        vips, ends = host.vips(), host.ends()
    except SockwayError as error:
        yield _finding(what, error.message, "its state", error.hint or "")
        return
    places = _addresses()
    lost = [str(vip) for vip in vips if "lo" not in places.get(vip, ())]
    yield _finding(
        f"{what}: VIPs on lo",
        f"missing: {_listed(lost)}" if lost else "",
        "taking clients' packets as its own",
        "`sockway backend up FILE` puts them there, or `ip addr add VIP/32 dev lo`",
        good=f"{len(vips)} there",
    )
    shown = [str(vip) for vip in vips if set(places.get(vip, ())) - {"lo"}]
    ignoring = max(_sysctl("all", "arp_ignore"), 0)
    loud = [] if ignoring or not any(isinstance(v, IPv4Address) for v in vips) else interfaces
    yield _finding(
        f"{what}: ARP",
        f"answered for VIPs: {_listed(shown or loud)}" if shown or loud else "",
        "clients of the same link reaching the balancer, not one backend",
        "take VIPs off other interfaces than lo; sysctl net.ipv4.conf.all.arp_ignore=1",
        good="not answered for VIPs",
    )
    strict = [
        each
        for each in interfaces
        if max(_sysctl("all", "rp_filter"), _sysctl(each, "rp_filter")) == _STRICT
    ]
    yield _finding(
        f"{what}: rp_filter",
        f"strict on {_listed(strict)}" if strict else "",
        "packets of clients whose way back is another interface's",
        "; ".join(f"sysctl net.ipv4.conf.{each}.rp_filter=2" for each in strict),
        good="not strict",
    )
    astray = [str(end) for end in ends if end not in places]
    yield _finding(
        f"{what}: tunnel ends",
        f"no address of this host: {_listed(astray)}" if astray else "",
        "opening tunnels",
        "`sockway backend up FILE` again, if its addresses have changed",
        good=_listed([str(end) for end in ends]),
    )
    foreign = host.counters()["foreign_source"]
    yield _finding(
        f"{what}: balancers",
        f"{foreign:,} tunnel packets came from others" if foreign else "",
        "opening tunnels",
        "if they are balancers of yours: name their outer sources, balancers = [...]",
        good="all tunnels come from those configured",
    )
    links = _links(interfaces)
    yield from _interfaces(what, interfaces, interfaces, links)
    generic = [link.name for link in links if link.generic]
    yield _finding(
        f"{what}: XDP mode",
        f"generic on {_listed(generic)}" if generic else "",
        "speed: behind the driver each packet costs several times as much",
        "a driver with XDP, and an MTU and a number of queues that it takes; "
        'mode = "native" makes it an error that says why',
        good="native" if links else "",
    )


def _finding(name: str, trouble: str, need: str, remedy: str, *, good: str = "") -> Feature:
    return Feature(name, not trouble, trouble or good, need, remedy if trouble else "", False)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _links(interfaces: Iterable[str]) -> list[_Link]:
    indices = []
    for name in interfaces:
        with contextlib.suppress(OSError):  # it is gone
            indices.append(socket.if_nametoindex(name))
    return [
        _Link(each.name, each.mtu, each.up, each.mode == "generic")
        for each in devices(indices).values()
    ]


def _addresses() -> dict[IpAddress, set[str]]:
    """Interfaces by the addresses that they have."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    found: dict[IpAddress, set[str]] = {}
    with IPRoute() as route:
        names = {int(x["index"]): str(x.get_attr("IFLA_IFNAME")) for x in route.get_links()}
        for entry in route.get_addr():
            text = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
            found.setdefault(ip_address(text), set()).add(names.get(int(entry["index"]), "?"))
    return found


def _sysctl(interface: str, name: str) -> int:
    try:
        text = Path("/proc/sys/net/ipv4/conf", interface, name).read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text)


def _ethtool(interface: str, command: int) -> int:
    """A number that the driver tells; 0 if it does not know the question."""
    value = ctypes.create_string_buffer(struct.pack("II", command, 0))
    request = struct.pack("16sQ8x", interface.encode(), ctypes.addressof(value))
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
    return int(struct.unpack_from("II", value.raw)[1])


__all__ = ["diagnose"]
