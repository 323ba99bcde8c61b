"""What a model is given: VIPs, pools, backends, numbers of the hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sockway.wire.mvfst import Mvfst
from sockway.wire.quic_lb import QuicLb

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58


@dataclass(frozen=True)
class Backend:
    """One backend."""

    address: bytes
    """Of the tunnel's end: 4 octets, or 16."""
    ifindex: int
    """Of the interface towards it."""
    next_hop: bytes
    """Link addresses: of the next hop, and of that interface."""
    own: bytes
    mtu: int = 0
    """Of the path, tunnel included; 0: no limit."""
    up: bool = True
    local: bool = False
    resolved: bool = True
    """Whether the way out is known. If not, the kernel is asked, and knows nothing here."""


@dataclass(frozen=True)
class Pool:
    """A ring and how packets get to its backends."""

    ring: Sequence[tuple[int, int]]
    """Current and previous backend of each slot, by number; 0: none."""
    in_transition: bool = False
    """Whether the time of the previous backends is not over (`history_until`)."""
    udp_early: bool = False
    """Whether unknown UDP flows belong to the previous backend (`udp_until`)."""
    gue_port: int | None = None
    """None: IP in IP."""
    source4: tuple[int, int] = (0, 0xFFFFFFFF)
    """Address and mask as little-endian numbers of their octets."""
    source6: tuple[bytes, int] = (bytes(16), 0xFFFFFFFF)
    """Address, and mask of its last four octets."""


@dataclass(frozen=True)
class Vip:
    """An entry (address, port, protocol)."""

    name: str
    """What counters call it."""
    pool: int
    by_source: bool = False
    limit: int | None = None
    """How many flows may be remembered in all: time stands still here. None: no limit."""
    stamped: bool = False
    """Whether packets may carry their server's ID."""


@dataclass(frozen=True)
class Address:
    """An address that has VIPs."""

    name: str
    echo: bool = True


@dataclass(frozen=True)
class Configuration:
    """All of it."""

    key: Sequence[int]
    """k0 to k13."""
    vips: Mapping[tuple[bytes, int, int], Vip]
    """By address, port (0: any), protocol."""
    addresses: Mapping[bytes, Address]
    pools: Mapping[int, Pool]
    backends: Mapping[int, Backend] = field(default_factory=dict)
    memory: Literal["history", "table", "none"] = "history"
    ids: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """Backends' numbers by pool and server ID."""
    tcp_kind: int = 0
    """Of the option that has a server ID; 0: none is read."""
    tcp_experiment: int | None = None
    tcp_byte_order: Literal["big", "little"] = "big"
    quic_ids: Sequence[QuicLb | Mvfst] = ()
    """What reads server IDs out of QUIC connection IDs; one of them at most knows an ID."""
    ingress: int = 1
    """Interface that packets come in by."""

    @property
    def any_port(self) -> bool:
        """Whether there are VIPs of any port."""
        return any(not port for _, port, _ in self.vips)
