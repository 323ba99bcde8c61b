"""What is stamped on a host: the file of `sockway stamp up`, checked.

What could be loaded and would never stamp anything is refused here, for nobody would hear of it.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sockway.balancer.config import parse, text_of
from sockway.balancer.profile import Profile, check_experiment, check_kind, with_profile
from sockway.balancer.spec import check_name
from sockway.kernel import ObjectLayout

LAYOUT: Final = ObjectLayout("stamp")
MAPPED: Final = IPv6Network("::ffff:0:0/96")
"""Where IPv4 is in the program's eyes."""

Network = IPv4Network | IPv6Network


class StampingSpec(BaseModel):
    """What is stamped on this host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "main"
    cgroup: Path | None = None
    """Whose processes' sockets: a directory of the hierarchy of version 2; all of it if not
    given."""
    server_id: int = Field(default=0, ge=0, lt=1 << 24)
    """This host's, as the balancers have it; 0: it is no server, or the registry says."""
    backend: str | None = None
    """This host's name in the registry of server IDs, which then says `server_id`."""
    registry: Path | None = None
    """The registry's file; where `sockway ids` looks if not given."""
    server_ports: list[int] = Field(default_factory=list)
    """Ports of this host whose connections are told the ID; 1,024 with the others, at most."""
    client_ports: list[int] = Field(default_factory=list)
    """Ports of others: connections of this host to them carry what they are told."""
    peers: list[IPv4Network | IPv6Network] = Field(min_length=1)
    """Whom options are written to; nobody else ever gets one."""
    server_kind: int = Field(ge=2, le=254)
    """Of the option that servers write; `profile` may say it."""
    client_kind: int = Field(ge=2, le=254)
    """Of the option that clients write, which balancers read; `profile` may say it."""
    server_experiment: int | None = Field(default=None, gt=0, le=0xFFFF)
    """Number of the experiment, with kind 253 or 254 (RFC 6994)."""
    client_experiment: int | None = Field(default=None, gt=0, le=0xFFFF)
    byte_order: Literal["big", "little"] = "big"
    """Of the ID's octets."""
    profile: Profile = None
    """`katran`: kinds and byte order as in fleets behind Katran."""

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_profile(cls, data: Any) -> Any:
        kinds = {"server_kind": 0xB6, "client_kind": 0xB7}
        return with_profile(data, kinds, ("server_experiment", "client_experiment"))

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @field_validator("server_kind", "client_kind")
    @classmethod
    def _kind(cls, value: int) -> int:
        return check_kind(value)

    @field_validator("server_ports", "client_ports")
    @classmethod
    def _ports(cls, value: list[int]) -> list[int]:
        for port in value:
            if not 0 < port <= 0xFFFF:  # noqa: PLR2004
                message = f"{port} is no port: 1 to 65535"
                raise ValueError(message)
        return value

    @field_validator("peers")
    @classmethod
    def _peers(cls, value: list[Network]) -> list[Network]:
        for network in value:
            if isinstance(network, IPv6Network) and network.subnet_of(MAPPED):
                message = f"{network} is IPv4 in IPv6: write {_unmapped(network)}"
                raise ValueError(message)
        limit = LAYOUT.constant("stamp_limit", "STAMP_PEERS")
        count = len(prefixes(value))
        if count > limit:
            message = f"{count:,} prefixes are more than {limit:,}: write fewer, shorter ones"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.backend is not None and self.server_id:
            message = "server_id and backend both say the server ID: leave one out"
            raise ValueError(message)
        if self.backend is None and self.registry is not None:
            message = "a registry wants backend, this host's name in it"
            raise ValueError(message)
        if not self.server_ports and not self.client_ports:
            message = (
                "nothing would be stamped: name server_ports (of this host), client_ports (of "
                "others), or both"
            )
            raise ValueError(message)
        if self.server_ports and not self.server_id and self.backend is None:
            message = (
                "server_ports tell the server ID, and there is none: give server_id, or backend, "
                "this host's name in the registry"
            )
            raise ValueError(message)
        limit = LAYOUT.constant("stamp_limit", "STAMP_PORTS")
        count = len({*self.server_ports, *self.client_ports})
        if count > limit:
            message = f"server_ports and client_ports are {count:,} ports, more than {limit:,}"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _experiments(self) -> Self:
        check_experiment("server_experiment", self.server_kind, self.server_experiment)
        check_experiment("client_experiment", self.client_kind, self.client_experiment)
        return self

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The configuration in a TOML file.

        Raises:
            ConfigError: it names the file, the line, the field and what is allowed.

        """
        return parse(cls, text_of(path), str(path))


def prefixes(peers: list[Network]) -> set[IPv6Network]:
    """Peers as the program looks for them: IPv4 mapped, and prefixes of IPv6 without it."""
    found: set[IPv6Network] = set()
    for network in peers:
        if isinstance(network, IPv4Network):
            found.add(_mapped(network))
        elif MAPPED.subnet_of(network):
            found.update(network.address_exclude(MAPPED))
        else:
            found.add(network)
    return found


def as_written(found: set[IPv6Network]) -> list[Network]:
    """Peers as somebody may have written them, from what the program has."""
    ipv4 = {network for network in found if network.subnet_of(MAPPED)}
    ipv6: set[IPv6Network] = found - ipv4
    if any(each.supernet() == MAPPED.supernet() for each in ipv6):
        # A prefix that IPv4 was taken out of.
        ipv6 = set(collapse_addresses([*ipv6, MAPPED]))
    return [*sorted(map(_unmapped, ipv4)), *sorted(ipv6)]


def _mapped(network: IPv4Network) -> IPv6Network:
    start = int(MAPPED.network_address) + int(network.network_address)
    return IPv6Network((start, network.prefixlen + MAPPED.prefixlen))


def _unmapped(network: IPv6Network) -> IPv4Network:
    start = int(network.network_address) - int(MAPPED.network_address)
    return IPv4Network((start, network.prefixlen - MAPPED.prefixlen))


__all__ = ["LAYOUT", "StampingSpec", "as_written", "prefixes"]
