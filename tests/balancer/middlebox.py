"""Two hosts with a box between them that sees all frames, and may change or drop them.

All is in network namespaces of the test's own. The kernels of both hosts have no offloads: a
segment is a frame.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2 import IPRoute

from sockway.kernel import Netns
from sockway.lab.interfaces import switch_off

CLIENT, SERVER = "10.7.0.1", "10.7.0.2"
CLIENT6, SERVER6 = "fd07::1", "fd07::2"
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_ETH_P_ALL = 3
_IPV4, _IPV6 = 0x0800, 0x86DD


@dataclass(frozen=True)
class Segment:
    """A frame of TCP, as the box sees it."""

    to_server: bool
    octets: int
    """Of IP."""
    flags: int
    options: list[tuple[int, bytes]]
    """Kinds, and what is behind the length."""
    payload: int
    """Octets."""
    options_at: int
    """Where they are in the frame."""
    full: int
    """Octets of options, with what fills them up."""

    def values(self, *kinds: int) -> list[int]:
        """Numbers in options of these kinds."""
        return [int.from_bytes(v, "big") for kind, v in self.options if kind in kinds]


Alter = Callable[[Segment, bytearray], bool]
"""What a box does to a segment; False: drops it."""


@dataclass
class Middlebox:
    """The box, and the two hosts."""

    client: Netns
    server: Netns
    alter: Alter = lambda _segment, _frame: True
    seen: list[Segment] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    """Of TCP, as they came."""

    def of_server(self) -> list[Segment]:
        """Segments that the server sent."""
        return [each for each in self.seen if not each.to_server]

    def of_client(self) -> list[Segment]:
        """Segments that the client sent."""
        return [each for each in self.seen if each.to_server]


@contextlib.contextmanager
def middlebox(mtu: int = 1500) -> Iterator[Middlebox]:
    """Hosts, links and the box, while the block lasts."""
    with Netns.create() as client, Netns.create() as server, Netns.create() as box:
        made = Middlebox(client, server)
        with box.entered(), IPRoute() as route:
            for name, host in (("c", client), ("s", server)):
                route.link("add", ifname=f"box-{name}", kind="veth", peer="eth0")
                peer = route.link_lookup(ifname="eth0")[0]
                route.link("set", index=peer, net_ns_fd=host.fd)
                index = route.link_lookup(ifname=f"box-{name}")[0]
                route.link("set", index=index, mtu=mtu, state="up")
        for host, addresses in ((client, (CLIENT, CLIENT6)), (server, (SERVER, SERVER6))):
            with host.entered():
                _settle(addresses, mtu)
        taps = [box.run(_tap(name)) for name in ("box-c", "box-s")]
        ended = threading.Event()
        worker = threading.Thread(target=_forward, args=(made, taps, ended), daemon=True)
        worker.start()
        try:
            yield made
        finally:
            ended.set()
            worker.join()
            for tap in taps:
                tap.close()


def sysctl(host: Netns, name: str, value: str) -> None:
    """Set `net.…` of a host."""
    path = Path("/proc/sys/net", *name.split("."))
    host.run(lambda: path.write_text(value, encoding="ascii"))


def stripped(kinds: set[int], segment: Segment, frame: bytearray) -> None:
    """Overwrite options by as many of nothing, as boxes do that do not know them."""
    at, end = segment.options_at, segment.options_at + segment.full
    while at < end and frame[at]:
        size = 1 if frame[at] == 1 else frame[at + 1]
        if frame[at] in kinds:
            before = bytes(frame[at - at % 2 : at + size + (at + size) % 2])
            frame[at : at + size] = b"\1" * size
            after = bytes(frame[at - at % 2 : at + size + (at + size) % 2])
            _mend(frame, segment.options_at - 20 + 16, before, after)
        at += size


def _mend(frame: bytearray, at: int, before: bytes, after: bytes) -> None:
    """Bring a checksum up to date (RFC 1624)."""
    total = ~struct.unpack_from("!H", frame, at)[0] & 0xFFFF
    for old, new in zip(
        struct.unpack(f"!{len(before) // 2}H", before),
        struct.unpack(f"!{len(after) // 2}H", after),
        strict=True,
    ):
        total += (~old & 0xFFFF) + new
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", frame, at, ~total & 0xFFFF)


def _settle(addresses: tuple[str, str], mtu: int) -> None:
    switch_off("eth0")
    with IPRoute() as route:
        index = route.link_lookup(ifname="eth0")[0]
        route.link("set", index=index, mtu=mtu, state="up")
        route.addr("add", index=index, address=addresses[0], prefixlen=24)
        route.addr("add", index=index, address=addresses[1], prefixlen=64, flags=0x02)


def _tap(name: str) -> Callable[[], socket.socket]:
    def opening() -> socket.socket:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        tap.bind((name, _ETH_P_ALL))
        tap.setblocking(False)
        return tap

    return opening


def _forward(box: Middlebox, taps: list[socket.socket], ended: threading.Event) -> None:
    while not ended.is_set():
        for tap in select.select(taps, [], [], 0.05)[0]:
            frame, address = tap.recvfrom(65_535)
            if address[2] == socket.PACKET_OUTGOING:
                continue
            changed = bytearray(frame)
            segment = _read(frame, to_server=tap is taps[0])
            if segment is not None:
                box.seen.append(segment)
                box.frames.append(frame)
                if not box.alter(segment, changed):
                    continue
            other = taps[1] if tap is taps[0] else taps[0]
            other.send(changed)


def _read(frame: bytes, *, to_server: bool) -> Segment | None:
    """None: not TCP."""
    kind = struct.unpack_from("!H", frame, 12)[0]
    if kind == _IPV4 and frame[23] == socket.IPPROTO_TCP:
        at, octets = 14 + (frame[14] & 15) * 4, struct.unpack_from("!H", frame, 16)[0]
    elif kind == _IPV6 and frame[20] == socket.IPPROTO_TCP:
        at, octets = 54, struct.unpack_from("!H", frame, 18)[0] + 40
    else:
        return None
    full = (frame[at + 12] >> 4) * 4 - 20
    options = list(_options(frame[at + 20 : at + 20 + full]))
    return Segment(
        to_server, octets, frame[at + 13], options, 14 + octets - at - 20 - full, at + 20, full
    )


def _options(octets: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(octets) and octets[at]:
        if octets[at] == 1:
            at += 1
            continue
        yield octets[at], octets[at + 2 : at + octets[at + 1]]
        at += octets[at + 1]


__all__ = [
    "ACK",
    "CLIENT",
    "CLIENT6",
    "FIN",
    "RST",
    "SERVER",
    "SERVER6",
    "SYN",
    "Middlebox",
    "Segment",
    "middlebox",
    "stripped",
    "sysctl",
]
