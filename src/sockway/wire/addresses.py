"""VIPs: what clients connect to, and how it is written.

How a VIP is written as a URL, and its options: `sockway.wire.vip_url`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import total_ordering
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, Literal, TypeVar, cast

from sockway.errors import ConfigError
from sockway.wire.host_id import MAX_LENGTH, MIN_LENGTH
from sockway.wire.vip_url import MAX_PORT, read_vip_url

if TYPE_CHECKING:
    from collections.abc import Mapping

Address = IPv4Address | IPv6Address
Protocol = Literal["tcp", "udp"]

MAX_PAYLOAD: Final = 65_507
"""Octets of the largest UDP payload over IPv4."""
DEFAULT_ID_LENGTH: Final = 16

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAPPED: Final = bytes(10) + b"\xff\xff"
_BROADCAST: Final = IPv4Address("255.255.255.255")


class FlowMode(StrEnum):
    """How a packet finds the worker that owns its flow."""

    TCP = "tcp"
    """The kernel knows its connections."""
    QUIC = "quic"
    """The connection ID names generation and worker, or the flow table knows it."""
    TUPLE = "tuple"
    """The flow table knows it by addresses and ports."""
    COOKIE = "cookie"
    """As for QUIC, with an ID at an offset that the application chooses."""
    NONE = "none"
    """There are no flows: each datagram is a new one."""


class Spread(StrEnum):
    """How a worker is picked for a new flow."""

    HASH = "hash"
    """Evenly, by the hash of addresses and ports."""
    WEIGHTS = "weights"
    """By weights for each worker that may change at run time."""
    CPU = "cpu"
    """By the CPU that the packet is on."""


class IdSource(StrEnum):
    """Who mints the IDs of a VIP's connections."""

    SOCKWAY = "sockway"
    """All come from `ConnectionIds`: an ID always names its owner."""
    ANY = "any"
    """The server mints IDs of its own: flows are remembered by address too."""


_FLOWS: Final[Mapping[str, tuple[FlowMode, ...]]] = {
    "tcp": (FlowMode.TCP,),
    "udp": (FlowMode.TUPLE, FlowMode.QUIC, FlowMode.COOKIE, FlowMode.NONE),
}
"""Flow modes that a protocol allows; the default first."""

_ID_LENGTHS: Final = {
    FlowMode.QUIC: range(MIN_LENGTH, MAX_LENGTH + 1),
    FlowMode.COOKIE: range(1, MAX_LENGTH + 1),
}
"""Flow modes that have IDs, and the lengths that these may have."""

# Stands for "the protocol's default" until __post_init__ has put that in its place: nobody who
# reads a Vip ever sees it, so it is not part of the field's type.
_BY_PROTOCOL: Final = cast("FlowMode", "")
_NOT_GIVEN: Final = -1

_Choice = TypeVar("_Choice", bound=StrEnum)


@total_ordering
@dataclass(frozen=True)
class Vip:
    """Address, port and protocol that clients connect to, and how its packets are routed.

    Raises:
        ConfigError: the parts don't fit together; it names the part and what is allowed.

    """

    protocol: Protocol
    address: Address
    port: int
    """1 to 65535."""
    v6only: bool = False
    """The IPv6 wildcard takes no IPv4 clients (IPV6_V6ONLY)."""
    flow: FlowMode = _BY_PROTOCOL
    """tcp for TCP; tuple for UDP unless given."""
    spread: Spread = Spread.HASH
    id_length: int = 0
    """Octets of an ID where the packet does not tell; 16 unless given, 0 without IDs."""
    id_offset: int = _NOT_GIVEN
    """Octets of the payload before the ID: must be given for flow=cookie, else 0."""
    ids: IdSource = IdSource.ANY
    members: tuple[Address, ...] = ()
    """Addresses below a wildcard that are VIPs of their own: they have their own counters."""
    name: str | None = None
    """What the worker knows the socket by (LISTEN_FDNAMES)."""

    def __post_init__(self) -> None:
        """Fill in the defaults that depend on other fields, and check."""
        if self.protocol not in _FLOWS:
            raise self._error(f"unknown protocol {self.protocol!r}", "use tcp or udp")
        flows = _FLOWS[self.protocol]
        self._set("flow", self._choice("flow", self.flow or flows[0], flows))
        self._set("spread", self._choice("spread", self.spread, tuple(Spread)))
        self._set("ids", self._choice("ids", self.ids, tuple(IdSource)))
        self._check_address()
        if self.flow in _ID_LENGTHS:
            self._check_ids()
        else:
            self._check_no_ids()
        self._set("members", tuple(sorted(self.members, key=_address_order)))
        self._check_members()
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise self._error(
                f"name={self.name} can't be used",
                "use 1 to 64 letters, digits, dots, underscores and hyphens",
            )

    @classmethod
    def parse(cls, text: str) -> Vip:
        """Read a VIP from its URL, such as `udp://[::]:4433?flow=quic&spread=cpu`.

        Raises:
            ConfigError: it can't be read, or its parts don't fit together.

        """
        protocol, address, port, options = read_vip_url(text)
        return cls(cast("Protocol", protocol), address, port, **options)

    def __str__(self) -> str:
        """Write it as `parse` reads it: defaults left out, options in the order of names."""
        options: list[tuple[str, object]] = []
        if self.flow != _FLOWS[self.protocol][0]:
            options.append(("flow", self.flow))
        if self.flow in _ID_LENGTHS and self.id_length != DEFAULT_ID_LENGTH:
            options.append(("id_length", self.id_length))
        if self.flow == FlowMode.COOKIE:
            options.append(("id_offset", self.id_offset))
        if self.ids != IdSource.ANY:
            options.append(("ids", self.ids))
        if self.name is not None:
            options.append(("name", self.name))
        if self.spread != Spread.HASH:
            options.append(("spread", self.spread))
        if self.v6only:
            options.append(("v6only", 1))
        options.extend(("vip", member) for member in self.members)
        query = "&".join(f"{option}={value}" for option, value in options)
        return self._url + (f"?{query}" if query else "")

    def __lt__(self, other: object) -> bool:
        """Order by protocol, address (IPv4 first) and port, then by how it is written."""
        if not isinstance(other, Vip):
            return NotImplemented
        return self._order < other._order

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for all addresses of the host."""
        return self.address.is_unspecified

    @property
    def key_address(self) -> bytes:
        """The address as the router's keys have it: see the function `key_address`."""
        return key_address(self.address)

    @property
    def _url(self) -> str:
        host = f"[{self.address}]" if isinstance(self.address, IPv6Address) else str(self.address)
        return f"{self.protocol}://{host}:{self.port}"

    @property
    def _order(self) -> tuple[str, int, int, int, str]:
        return (self.protocol, *_address_order(self.address), self.port, str(self))

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def _error(self, what: str, hint: str) -> ConfigError:
        return ConfigError(f"VIP {self._url}: {what}", hint=hint)

    def _choice(self, option: str, value: str, allowed: tuple[_Choice, ...]) -> _Choice:
        """Turn a word into the enumeration's member."""
        for member in allowed:
            if member == value:
                return member
        raise self._error(
            f"{option}={value} can't be used with {self.protocol}", f"use {' or '.join(allowed)}"
        )

    def _check_address(self) -> None:
        """Refuse what can't be bound, or not so that each packet reaches one socket."""
        if not 1 <= self.port <= MAX_PORT:
            raise self._error(f"port {self.port} can't be used", f"use 1 to {MAX_PORT}")
        self._check_unicast("the address", self.address)
        if self.v6only and isinstance(self.address, IPv4Address):
            raise self._error("v6only is for IPv6 addresses", "leave it out")

    def _check_unicast(self, what: str, address: Address) -> None:
        """Refuse addresses that a server can't have, or that mean another one."""
        if isinstance(address, IPv6Address):
            if address.ipv4_mapped is not None:
                raise self._error(
                    f"{what} {address} is IPv4 in disguise", f"write {address.ipv4_mapped}"
                )
            if address.scope_id is not None or address.is_link_local:
                raise self._error(
                    f"{what} {address} is on one link only: such zones are not supported",
                    "use a global or a unique local address",
                )
        if address.is_multicast or address == _BROADCAST:
            raise self._error(
                f"{what} {address} is not one host's: each socket would get each packet",
                "use a unicast address",
            )

    def _check_ids(self) -> None:
        """Refuse IDs that don't fit the flow mode; fill in their defaults."""
        if self.id_length == 0:
            self._set("id_length", DEFAULT_ID_LENGTH)
        lengths = _ID_LENGTHS[self.flow]
        if self.id_length not in lengths:
            raise self._error(
                f"id_length={self.id_length} can't be used with flow={self.flow}",
                f"use {lengths[0]} to {lengths[-1]}",
            )
        if self.ids == IdSource.SOCKWAY and self.id_length < MIN_LENGTH:
            raise self._error(
                f"id_length={self.id_length} is too short for ids=sockway",
                f"use {MIN_LENGTH} to {MAX_LENGTH}",
            )
        if self.flow == FlowMode.QUIC:
            if self.id_offset not in {0, _NOT_GIVEN}:
                raise self._error(
                    "id_offset is for flow=cookie", "leave it out: QUIC says where an ID is"
                )
            self._set("id_offset", 0)
        last = MAX_PAYLOAD - self.id_length
        if self.id_offset == _NOT_GIVEN:
            raise self._error(
                "flow=cookie needs id_offset",
                f"say where in the payload the ID starts: 0 to {last}",
            )
        if not 0 <= self.id_offset <= last:
            raise self._error(f"id_offset={self.id_offset} can't be used", f"use 0 to {last}")

    def _check_no_ids(self) -> None:
        """Refuse ID options where there are no IDs."""
        given = {
            "id_length": self.id_length != 0,
            "id_offset": self.id_offset not in {0, _NOT_GIVEN},
            "ids": self.ids != IdSource.ANY,
        }
        for option, is_given in given.items():
            if is_given:
                raise self._error(
                    f"{option} has no meaning with flow={self.flow}",
                    "it is for flow=quic and flow=cookie",
                )
        self._set("id_offset", 0)

    def _check_members(self) -> None:
        """Refuse members that the socket would not get packets for."""
        if self.members and not self.is_wildcard:
            raise self._error("vip= is for wildcards", "bind 0.0.0.0 or [::], or leave it out")
        seen: set[Address] = set()
        for member in self.members:
            self._check_unicast("vip", member)
            if member.is_unspecified:
                raise self._error(f"vip={member} is a wildcard itself", "name one address")
            if member in seen:
                raise self._error(f"vip={member} is there twice", "name each address once")
            seen.add(member)
            if isinstance(member, IPv6Address) and isinstance(self.address, IPv4Address):
                raise self._error(f"vip={member} is not below 0.0.0.0", "bind [::] for IPv6")
            if isinstance(member, IPv4Address) and self.v6only:
                raise self._error(f"vip={member} is shut out by v6only=1", "bind 0.0.0.0 for it")


def key_address(address: Address) -> bytes:
    """An address as the router's keys have it: 16 octets, network order.

    IPv4 is mapped (RFC 4291, section 2.5.5.2), so that 0.0.0.0 and :: differ.
    """
    if isinstance(address, IPv4Address):
        return _MAPPED + address.packed
    return address.packed


def _address_order(address: Address) -> tuple[int, int]:
    """What sorts addresses of both versions."""
    return address.version, int(address)
