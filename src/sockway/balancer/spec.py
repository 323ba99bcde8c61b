"""What a balancer is to do: VIPs, pools, backends, and how."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from sockway.balancer.health.spec import HealthSpec
from sockway.balancer.profile import Profile, check_experiment, check_kind, with_profile
from sockway.wire.maglev import MAX_MEMBERS, MAX_WEIGHT, RING_SIZE, is_prime
from sockway.wire.mvfst import Mvfst
from sockway.wire.quic_lb import KEY_LENGTH, LEAST_NONCE, MAX_TOGETHER, QuicLb, QuicLbConfig

IpAddress = IPv4Address | IPv6Address

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LISTEN = re.compile(r"(tcp|udp)://(\[[^\]]+\]|[^:]+):(\d+|\*)")
_KEY = re.compile(r"[0-9A-Fa-f]{32}")
PROTOCOLS = {"tcp": 6, "udp": 17}
ANY_PORT = 0
_LAST_PORT = 65535

Name = Annotated[str, Field(description="letters, digits, '.', '_' and '-', 63 at most")]


def check_name(name: str) -> str:
    """A name as pools, backends and balancers have it.

    Raises:
        ValueError: it is none.

    """
    if not _NAME.fullmatch(name):
        message = f"{name!r} is no name: use letters, digits, '.', '_' and '-', 63 at most"
        raise ValueError(message)
    return name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackendSpec(_Strict):
    """A backend as a pool has it."""

    address: IpAddress
    """Where its end of the tunnel is."""
    weight: int = Field(default=100, ge=0, le=MAX_WEIGHT)
    """Its share of new flows in relation to others of the pool; 0: it is drained."""
    server_id: int = Field(default=0, ge=0, lt=1 << 24)
    """Its number in stamps, unique in the fleet; 0: none. With a `registry`, that one's."""
    id_of: str | None = None
    """Its name in the registry of server IDs, if that is another one."""
    local: bool = False
    """Whether it is the balancer's own host: packets are passed to it as they are."""


class LimitSpec(_Strict):
    """How many new connections of a VIP are remembered."""

    rate: int = Field(gt=0, le=10_000_000)
    """Connections a second."""
    burst: int | None = Field(default=None, gt=0, le=10_000_000)
    """Connections at once, after a pause; as many as in a second if not given."""


class PoolSpec(_Strict):
    """A weighted set of backends, one ring."""

    backends: dict[str, BackendSpec] = Field(max_length=MAX_MEMBERS)
    encapsulation: Literal["ip", "gue"] = "ip"
    """`ip`: IP in IP; `gue`: in UDP, so that any network and network card can spread it."""
    gue_port: int = Field(default=6080, gt=0, le=_LAST_PORT)
    """UDP port of the backends' ends, with `gue`."""
    source4: IPv4Network | None = None
    """Outer source of the tunnel to IPv4 backends: an address, or a prefix within which it varies
    by flow. The host's own address towards the backend if not given."""
    source6: IPv6Network | None = None
    """The same for IPv6 backends; the prefix has 96 bits or more."""
    mtu: int | None = Field(default=None, ge=1280, le=65535)
    """Largest packet on the way to the backends, tunnel included; the route's if not given."""
    health: HealthSpec | None = None
    """How backends are checked; they are not, if not given."""
    ring_size: int = Field(default=RING_SIZE, ge=7, le=16_777_213)
    """Slots, a prime number: a hundred times the backends, or more."""

    @field_validator("backends", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """`web1 = "10.0.1.1"` stands for `web1 = { address = "10.0.1.1" }`."""
        if isinstance(value, dict):
            return {k: {"address": v} if isinstance(v, str) else v for k, v in value.items()}
        return value

    @field_validator("backends")
    @classmethod
    def _named(cls, value: dict[str, BackendSpec]) -> dict[str, BackendSpec]:
        for name in value:
            check_name(name)
        return value

    @field_validator("ring_size")
    @classmethod
    def _prime(cls, value: int) -> int:
        if not is_prime(value):
            message = "it must be a prime number, such as 65537 or 655373"
            raise ValueError(message)
        return value

    @field_validator("source6")
    @classmethod
    def _varies_in_the_last_word(cls, value: IPv6Network | None) -> IPv6Network | None:
        least = 96
        if value is not None and value.prefixlen < least:
            message = f"a prefix of {least} bits or more is needed"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.backends) > self.ring_size:
            message = f"{len(self.backends)} backends do not fit into {self.ring_size} slots"
            raise ValueError(message)
        return self


class StampSpec(_Strict):
    """How packets of TCP carry their server's ID: an option that clients' hosts write."""

    kind: int = Field(ge=2, le=254)
    """Of the option; 253 and 254 are shared by experiments and want `experiment`; `profile` may
    say it."""
    experiment: int | None = Field(default=None, gt=0, le=0xFFFF)
    """Number of the experiment (RFC 6994): the option has it before the ID."""
    byte_order: Literal["big", "little"] = "big"
    """Of the ID's four octets."""
    profile: Profile = None
    """`katran`: kind and byte order as in fleets behind Katran."""

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_profile(cls, data: Any) -> Any:
        return with_profile(data, {"kind": 0xB7}, ("experiment",))

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: int) -> int:
        return check_kind(value)

    @model_validator(mode="after")
    def _experiment(self) -> Self:
        check_experiment("experiment", self.kind, self.experiment)
        return self


class QuicIdSpec(_Strict):
    """One configuration of QUIC connection IDs that name their server."""

    layout: Literal["quic-lb", "mvfst-1", "mvfst-2", "mvfst-3"] = "quic-lb"
    """`quic-lb`: draft-ietf-quic-load-balancers; `mvfst-1` to `mvfst-3`: where mvfst's servers put
    their host ID, which the other fields do not change."""
    rotation: int | None = Field(default=None, ge=0, le=6)
    """Its number, in the first three bits of an ID; of `quic-lb`, and needed there."""
    server_id_length: int = Field(default=3, ge=1, le=7)
    """Octets of a server ID."""
    nonce_length: int | None = Field(default=None, ge=4, le=18)
    """Octets of a nonce; needed with a key. 16 octets together are read fastest."""
    key: str | None = Field(default=None, repr=False)
    """Key of AES-128, 32 hexadecimal digits, as the servers have it; IDs are in clear if not
    given."""

    @field_validator("key")
    @classmethod
    def _hexadecimal(cls, value: str | None) -> str | None:
        if value is not None and not _KEY.fullmatch(value):
            message = "it has 32 hexadecimal digits; make one with: openssl rand -hex 16"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.layout != "quic-lb":
            given = self.model_fields_set - {"layout"}
            if given:
                message = f"{self.layout} has no {min(given)}"
                raise ValueError(message)
            return self
        if self.rotation is None:
            message = "quic-lb needs a rotation, 0 to 6"
            raise ValueError(message)
        if self.key is not None and self.nonce_length is None:
            message = "a key needs nonce_length: it tells where what is encrypted ends"
            raise ValueError(message)
        if self.server_id_length + (self.nonce_length or 0) > MAX_TOGETHER:
            message = f"server_id_length and nonce_length are {MAX_TOGETHER} together at most"
            raise ValueError(message)
        return self

    @property
    def name(self) -> str:
        """What tells it from others: `rotation 1`, `mvfst-2`."""
        return f"rotation {self.rotation}" if self.layout == "quic-lb" else self.layout

    @property
    def starts(self) -> frozenset[int]:
        """What the first three bits of such IDs can be."""
        if self.layout != "quic-lb":
            version = int(self.layout[-1])
            return frozenset({2 * version, 2 * version + 1})
        return frozenset() if self.rotation is None else frozenset({self.rotation})

    @property
    def blocks(self) -> int:
        """Blocks of AES that a balancer computes to read one; 0: in clear."""
        if self.key is None:
            return 0
        together = self.server_id_length + (self.nonce_length or 0)
        if together == KEY_LENGTH:
            return 1
        return 4 if self.server_id_length > together // 2 else 3

    def codec(self) -> QuicLb | Mvfst:
        """What reads them, in Python."""
        if self.layout != "quic-lb":
            return Mvfst(int(self.layout[-1]))
        key = None if self.key is None else bytes.fromhex(self.key)
        nonce = self.nonce_length or LEAST_NONCE
        return QuicLb(QuicLbConfig(self.rotation or 0, self.server_id_length, nonce, key))


class VipSpec(_Strict):
    """An address that clients connect to."""

    listen: str
    """`tcp://192.0.2.1:443`, `udp://[2001:db8::1]:443`; port `*` is any."""
    pool: str
    hash: Literal["connection", "source"] = "connection"
    """`source`: all flows of a client's address go to one backend."""
    echo: bool = True
    """Whether ICMP echo to the address is answered."""
    limit: LimitSpec | None = None
    """New connections that are remembered while the pool changes; no limit if not given."""
    stamps: bool = False
    """Whether packets may carry their server's ID; see `stamp` and `quic_ids`."""
    entries: int | None = Field(default=None, gt=0)
    """Places of the connection table that the VIP may use; all if not given."""

    @field_validator("listen")
    @classmethod
    def _parsed(cls, value: str) -> str:
        match = _LISTEN.fullmatch(value)
        if not match:
            message = "write tcp://192.0.2.1:443 or udp://[2001:db8::1]:443, port * for any"
            raise ValueError(message)
        address = _address(match[2])
        if address.is_unspecified or address.is_multicast or address.is_loopback:
            message = f"{address} is no address that clients can connect to"
            raise ValueError(message)
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            message = f"write {address.ipv4_mapped}: IPv4 in IPv6 does not travel"
            raise ValueError(message)
        if match[3] != "*" and not 0 < int(match[3]) <= _LAST_PORT:
            message = f"a port is 1 to {_LAST_PORT}"
            raise ValueError(message)
        return f"{match[1]}://{f'[{address}]' if address.version == 6 else address}:{match[3]}"  # noqa: PLR2004

    @property
    def address(self) -> IpAddress:
        """Where packets go."""
        return _address(self._match[2])

    @property
    def port(self) -> int:
        """The port; 0 for any."""
        return ANY_PORT if self._match[3] == "*" else int(self._match[3])

    @property
    def protocol(self) -> int:
        """6 or 17."""
        return PROTOCOLS[self._match[1]]

    @property
    def _match(self) -> re.Match[str]:
        match = _LISTEN.fullmatch(self.listen)
        if match is None:  # the validator saw to it
            raise ValueError(self.listen)
        return match


def _address(text: str) -> IpAddress:
    bare = text[1:-1] if text.startswith("[") else text
    return IPv6Address(bare) if ":" in bare else IPv4Address(bare)


class RegisteredSpec(_Strict):
    """Where server IDs were taken from; filled in by who takes them."""

    registry: str
    """The registry's own name."""
    revision: int
    """That the IDs are of."""
    token: str
    """What marks the revision."""
    balancer: str
    """The balancer's name in the fleet."""


class BalancerSpec(_Strict):
    """A whole configuration."""

    name: str = "main"
    registry: Path | None = None
    """The registry of server IDs; backends have those that are written here if not given."""
    registry_as: str | None = Field(default=None, min_length=1, max_length=255)
    """The balancer's name in the registry, one in the fleet; host and name if not given."""
    registered: RegisteredSpec | None = Field(default=None, json_schema_extra={"internal": True})
    """Of which revision the server IDs are; not to be written."""
    interfaces: list[str] = Field(default_factory=list)
    """Where packets come in; the program is attached to each."""
    mode: Literal["auto", "native", "generic"] = "auto"
    """Where XDP runs: in the driver, or behind it; `auto`: in the driver where that loses no
    packets."""
    next: Path | None = None
    """Pin of another XDP program, which gets what is for no VIP."""
    secret: str | None = Field(default=None, min_length=8, repr=False)
    """What slots are hashed with; the same on all balancers of a fleet. Random if not given."""
    memory: Literal["history", "table", "none"] = "history"
    """How flows are remembered across changes of a pool; see ARCHITECTURE.md."""
    flows: int = Field(default=131_072, ge=64, le=1 << 28)
    """Places in the connection table."""
    history: float = Field(default=3600, ge=0, le=15_000)
    """Seconds that a slot remembers its previous backend."""
    udp_window: float = Field(default=60, ge=0, le=15_000)
    """Seconds after a change in which unknown UDP flows are taken for older ones."""
    flow_timeout: float = Field(default=3600, ge=1, le=15_000)
    """Seconds until an idle TCP flow is forgotten by the table."""
    udp_timeout: float = Field(default=120, ge=1, le=15_000)
    """The same for UDP."""
    mark: int = Field(default=0x50C0, gt=0, lt=1 << 16)
    """Upper 16 bits of the marks of health checks' packets, on this host."""
    stamp: StampSpec | None = None
    """What TCP packets of VIPs with `stamps` carry; needed where there are such VIPs."""
    quic_ids: list[QuicIdSpec] = Field(default_factory=list, max_length=7)
    """What QUIC packets of VIPs with `stamps` carry; several while one takes another's place."""
    pool: dict[str, PoolSpec] = Field(default_factory=dict)
    vip: list[VipSpec] = Field(default_factory=list)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @field_validator("pool")
    @classmethod
    def _names(cls, value: dict[str, PoolSpec]) -> dict[str, PoolSpec]:
        for name in value:
            check_name(name)
        return value


__all__ = [
    "BackendSpec",
    "BalancerSpec",
    "IpAddress",
    "LimitSpec",
    "PoolSpec",
    "QuicIdSpec",
    "RegisteredSpec",
    "StampSpec",
    "VipSpec",
]
