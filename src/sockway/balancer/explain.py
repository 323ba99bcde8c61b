"""What would become of a packet, and why: asked of the program itself.

The program `explain` is the balancer's own code without its last step. It is run by the kernel
(BPF_PROG_TEST_RUN) on one frame, over the maps in force, and changes and counts nothing.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

from sockway.balancer import layout
from sockway.balancer.ledger import Ledger
from sockway.balancer.spec import PROTOCOLS
from sockway.balancer.state import BalancerState
from sockway.errors import ConfigError

_LINKS: Final = bytes.fromhex("020000000001 020000000002".replace(" ", ""))
_SYN, _ACK = 0x02, 0x10
_SHORT: Final = b"\x40"
_LEAST_QUIC: Final = 20
"""Octets behind a connection ID, of a packet of the smallest size."""
VERDICTS: Final = ("aborted", "drop", "pass", "transmit", "redirect")


@dataclass(frozen=True)
class Explanation:
    """What would become of a packet."""

    verdict: str
    """`transmit` or `redirect`: sent to a backend or answered; `pass`: left to the host; `drop`."""
    outcome: str | None
    """The counter that it would count in; None: it is for no VIP."""
    why: str
    """A sentence."""
    vip: str | None = None
    pool: str | None = None
    slot: int | None = None
    current: str | None = None
    """The slot's backend."""
    previous: str | None = None
    """The slot's backend before the last change, if it is remembered."""
    in_transition: bool = False
    known: str | None = None
    """The backend that the connection table has for the flow."""
    stamp: int | None = None
    """The server ID that it carries."""
    backend: str | None = None
    """Where it would go."""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


_WHY: Final = {
    "by_ring": "its slot of the ring belongs to that backend",
    "by_table": "the connection table knows the flow",
    "new_flow": "it opens a flow in a slot in transition: the current backend, and remembered",
    "by_previous": "its slot is in transition and the flow unknown, so older than the change",
    "over_limit": "a new flow over the VIP's limit: it is not remembered",
    "by_stamp": "it carries the backend's server ID",
    "icmp_error": "it quotes a packet of a flow of that backend",
    "to_local": "the backend is this host",
    "echoed": "an echo request to a VIP's address is answered",
    "too_big": "it does not fit into the tunnel; the sender is told the MTU",
    "too_big_dropped": "it does not fit into the tunnel, and the sender can't be told",
    "fragment": 'a fragment has no ports to go by; VIPs of any port with hash = "source" take them',
    "ttl_expired": "its time to live is over",
    "no_backend": "the pool has no backend that is up for its slot",
    "no_route": "no next hop towards the backend is known",
    "no_room": "the frame has no room for the tunnel's headers",
}


def explain(state: BalancerState, book: Ledger, frame: bytes) -> Explanation:
    """What would become of an Ethernet frame.

    Raises:
        KernelError: the kernel takes no frame like this.

    """
    with state.program("explain") as program:
        program.test_run(frame)
    found = state.maps["explanation"][0]
    if not found.found:
        return Explanation("pass", None, "it is for no VIP, or nothing that a balancer looks at")
    indices = {index: key for key, index in book.indices.items()}
    pools = {place.number: name for name, place in book.pools.items()}
    outcome = layout.outcomes()[found.outcome]
    chosen = bool(found.current or found.backend)
    return Explanation(
        verdict=VERDICTS[found.verdict],
        outcome=outcome,
        why=_WHY[outcome],
        vip=indices.get(found.vip),
        pool=pools.get(found.pool),
        slot=int(found.slot) if chosen and outcome != "by_stamp" else None,
        current=_name(book, found.current),
        previous=_name(book, found.previous),
        in_transition=bool(found.in_transition),
        known=_name(book, found.known),
        stamp=int(found.stamp) or None,
        backend=_name(book, found.backend),
    )


def frame_of(
    protocol: str, client: str, vip: str, flags: str = "ack", connection_id: bytes | None = None
) -> bytes:
    """A frame of a flow, to ask about.

    Args:
        protocol: `tcp` or `udp`.
        client: its address and port, `198.51.100.7:40000` or `[2001:db8::7]:40000`.
        vip: where it goes, in the same form.
        flags: for TCP: `syn` or `ack`.
        connection_id: for UDP: a QUIC packet with a short header and this ID.

    Raises:
        ConfigError: it names what can't be read.

    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"{protocol!r} is no protocol", hint="use tcp or udp")
    source, target = _endpoint(client), _endpoint(vip)
    if isinstance(source[0], IPv6Address) != isinstance(target[0], IPv6Address):
        raise ConfigError(f"{client} and {vip} are not of one family")
    if connection_id is not None and protocol != "udp":
        raise ConfigError("a packet of TCP has no connection ID", hint="QUIC is over udp")
    number = PROTOCOLS[protocol]
    ports = struct.pack("!HH", source[1], target[1])
    if number == PROTOCOLS["tcp"]:
        bits = _SYN if flags == "syn" else _ACK
        payload = ports + struct.pack("!IIBBHHH", 0, 0, 5 << 4, bits, 65_535, 0, 0)
    else:
        quic = b"" if connection_id is None else _SHORT + connection_id + bytes(_LEAST_QUIC)
        payload = ports + struct.pack("!HH", 8 + len(quic), 0) + quic
    if isinstance(source[0], IPv6Address):
        head = struct.pack("!IHBB", 6 << 28, len(payload), number, 64)
        return _LINKS + b"\x86\xdd" + head + source[0].packed + target[0].packed + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, number, 0)
    return _LINKS + b"\x08\0" + head + source[0].packed + target[0].packed + payload


def _endpoint(text: str) -> tuple[layout.IpAddress, int]:
    host, _, port = text.rpartition(":")
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError:
        number = 0
    if not 0 < number < 1 << 16:
        raise ConfigError(
            f"{text!r} is no address with a port", hint="write 192.0.2.1:443 or [2001:db8::1]:443"
        ) from None
    return address, number


def _name(book: Ledger, number: int) -> str | None:
    return (book.name_of(number) or f"number {number}, removed") if number else None


__all__ = ["Explanation", "explain", "frame_of"]
