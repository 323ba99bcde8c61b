"""A network as data: clients, routers, balancers, backends, and the addresses that follow.

How many there are of each is enough; whoever wants names, addresses or several routers writes a
table for each host instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sockway.balancer.config import parse, place, text_of
from sockway.errors import ConfigError

Role = Literal["client", "router", "balancer", "backend"]

ROUTER: Final = "router"
"""The name of the one that is there if none is described."""
LINK: Final = "eth0"
"""What hosts, and routers below others, call their link."""
OWN4: Final = IPv4Network("10.77.0.0/16")
OWN6: Final = IPv6Network("fd77::/32")
_NO_VIPS: Final[Mapping[IPv4Network | IPv6Network, str]] = {
    IPv4Network("0.0.0.0/8"): "this network",
    IPv4Network("127.0.0.0/8"): "loopback",
    IPv4Network("169.254.0.0/16"): "link-local",
    IPv4Network("224.0.0.0/4"): "multicast",
    IPv4Network("240.0.0.0/4"): "reserved",
    IPv6Network("::/8"): "loopback and what stands for IPv4",
    IPv6Network("fe80::/10"): "link-local",
    IPv6Network("ff00::/8"): "multicast",
}
"""Networks that no router would send to a balancer."""
_ROLES: Final[tuple[Role, ...]] = ("client", "balancer", "backend")
_LAST_LINK: Final = 254
"""Links to hosts are numbered from 1 up, those between routers from here down."""
_LAST_HOST: Final = 255
_RESERVED: Final = frozenset({"lo", LINK, "all", "default"})
_NAME: Final = r"^[a-z][a-z0-9-]{0,13}$"


@dataclass(frozen=True)
class NodePlan:
    """A host of the network, and its one link to a router."""

    name: str
    role: Role
    number: int
    """Of the link; it is in all of its addresses that nobody chose."""
    mtu: int
    router: str = ROUTER
    """Where the link leads."""
    chosen4: IPv4Address | None = None
    chosen6: IPv6Address | None = None

    @property
    def is_chosen(self) -> bool:
        """Whether somebody chose one of its addresses."""
        return self.chosen4 is not None or self.chosen6 is not None

    @property
    def network4(self) -> IPv4Network:
        """The link's."""
        return IPv4Network((self.address4, 24), strict=False)

    @property
    def network6(self) -> IPv6Network:
        """The link's."""
        return IPv6Network((self.address6, 64), strict=False)

    @property
    def address4(self) -> str:
        """The host's end."""
        return str(self.chosen4 or f"10.77.{self.number}.2")

    @property
    def router4(self) -> str:
        """The router's end."""
        first = self.network4[1]
        return str(self.network4[2] if str(first) == self.address4 else first)

    @property
    def address6(self) -> str:
        """The host's end."""
        return str(self.chosen6 or f"fd77:0:0:{self.number:x}::2")

    @property
    def router6(self) -> str:
        """The router's end."""
        first = self.network6[1]
        return str(self.network6[2] if str(first) == self.address6 else first)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HostDescription(_Model):
    """A client, balancer or backend that is described."""

    name: str = Field(pattern=_NAME)
    """Also of its interface at the router; `sockway lab exec` takes it."""
    router: str | None = None
    """The router that it is at; the first one unless given."""
    address4: IPv4Address | None = None
    """In 10.77.0.0/16; one host in each /24."""
    address6: IPv6Address | None = None
    """In fd77::/32; one host in each /64."""


class RouterDescription(_Model):
    """A router that is described."""

    name: str = Field(pattern=_NAME)
    """Its name."""
    uplink: str | None = None
    """The router that it is at; needed for all but the first."""


class Topology(_Model):
    """How many of each there are, or each of them; and what their links carry."""

    name: str = Field(default="lab", pattern=r"^[a-z][a-z0-9]{0,7}$")
    """The lab's; its namespaces are called sockway-NAME-NODE."""
    clients: int = Field(default=2, ge=1, le=50)
    """How many, where none is described."""
    balancers: int = Field(default=2, ge=0, le=50)
    """How many, where none is described."""
    backends: int = Field(default=3, ge=0, le=100)
    """How many, where none is described."""
    mtu: int = Field(default=1500, ge=1280, le=9000)
    """Of the clients' links."""
    tunnel_mtu: int = Field(default=1600, ge=1280, le=9000)
    """Of all other links; larger, for a tunnel's headers come on top."""
    vips4: IPv4Network = IPv4Network("192.0.2.0/24")
    """Where IPv4 VIPs are: routers send them to the nearest balancers, in equal shares.
    The first host's address in it is the fleet's."""
    vips6: IPv6Network = IPv6Network("2001:db8:1::/64")
    """Where IPv6 VIPs are; the first host's address in it is the fleet's."""
    router: list[RouterDescription] = Field(default=[], max_length=20)
    """Routers, as `[[router]]`; one called `router` unless given."""
    client: list[HostDescription] = Field(default=[], max_length=50)
    """Clients, as `[[client]]`."""
    balancer: list[HostDescription] = Field(default=[], max_length=50)
    """Balancers, as `[[balancer]]`."""
    backend: list[HostDescription] = Field(default=[], max_length=100)
    """Backends, as `[[backend]]`."""

    @field_validator("vips4", "vips6")
    @classmethod
    def _apart(cls, value: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
        own = OWN4 if isinstance(value, IPv4Network) else OWN6
        if value.overlaps(own):
            message = f"{own} is the lab's own"
            raise ValueError(message)
        for network, what in _NO_VIPS.items():
            if network.version == value.version and value.overlaps(network):
                message = f"{value} can't be of VIPs: {network} is {what}"
                raise ValueError(message)
        return value

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The topology in a TOML file.

        Raises:
            ConfigError: it names the file, the line and the field.

        """
        text = text_of(path)
        topology = parse(cls, text, str(path))
        for location, words, hint in topology.problems():
            raise ConfigError(f"{place(text, str(path), location)}: {words}", hint=hint)
        return topology

    def check(self) -> None:
        """Look at what fields alone can't say.

        Raises:
            ConfigError: a network can't be built so.

        """
        for _, words, hint in self.problems():
            raise ConfigError(f"lab {self.name}: {words}", hint=hint)

    def problems(self) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
        """What a model of fields can't say: where, what is wrong, the way out."""
        names: set[str] = set()
        routers = [each.name for each in self.routers]
        for role, index, name in self._described():
            where = (role, index, "name")
            if name in _RESERVED:
                yield where, f"{name!r} is the name of an interface", "give it another name"
            if name in names:
                yield where, f"{name!r} is there twice", "give each host a name of its own"
            names.add(name)
        for role in _ROLES:
            if f"{role}s" in self.model_fields_set and getattr(self, role):
                hint = f"keep `{role}s` or the tables `[[{role}]]`"
                yield (f"{role}s",), f"{role}s are counted and described", hint
            for index, host in enumerate(getattr(self, role)):
                if host.router is not None and host.router not in routers:
                    hint = f"routers are: {', '.join(routers)}"
                    yield (role, index, "router"), f"there is no router {host.router!r}", hint
        yield from self._uplinks()
        yield from self._addresses()

    def _described(self) -> Iterator[tuple[str, int, str]]:
        for role in (ROUTER, *_ROLES):
            for index, each in enumerate(getattr(self, role)):
                yield role, index, each.name
        for role in _ROLES:
            if not getattr(self, role):
                for number in range(1, getattr(self, f"{role}s") + 1):
                    yield role, 0, f"{role}{number}"
        if not self.router:
            yield ROUTER, 0, ROUTER

    def _uplinks(self) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
        """Routers are a tree: each has its uplink before it."""
        known: list[str] = []
        for index, router in enumerate(self.router):
            where = (ROUTER, index, "uplink")
            if index == 0 and router.uplink is not None:
                yield where, "the first router has no uplink", "leave it out"
            if index and router.uplink not in known:
                words = f"there is no router {router.uplink!r} before {router.name}"
                yield where, words, f"name one of: {', '.join(known)}"
            known.append(router.name)

    def _addresses(self) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
        """Chosen addresses are the lab's, and each link is a network of its own."""
        places: dict[str, tuple[Role, int]] = {}
        for role in _ROLES:
            for index, host in enumerate(getattr(self, role)):
                places[host.name] = role, index
                for field, own in (("address4", OWN4), ("address6", OWN6)):
                    address: IPv4Address | IPv6Address | None = getattr(host, field)
                    if address is not None and not _is_a_host(address, own):
                        hint = "choose one between 10.77.1.1 and 10.77.254.254, or in fd77::/32"
                        yield (role, index, field), f"{address} is no host's of {own}", hint
                        return
        seen: dict[IPv4Network | IPv6Network, str] = {}
        # Those with a choice last, so that it is they who are told.
        for plan in sorted([*self.uplinks, *self.nodes], key=lambda plan: plan.is_chosen):
            for field, link in (("address4", plan.network4), ("address6", plan.network6)):
                if link in seen:
                    where = (*places[plan.name], field) if plan.name in places else ()
                    hint = "one host in each network: choose an address in another"
                    yield where, f"{plan.name} is in {link}, as {seen[link]} is", hint
                seen[link] = plan.name

    def _uplink_numbers(self) -> list[tuple[RouterDescription, int]]:
        """Routers with an uplink, and the numbers of those links."""
        return [(each, _LAST_LINK - at) for at, each in enumerate(self.router[1:])]

    @property
    def routers(self) -> list[RouterDescription]:
        """All routers, each behind its uplink."""
        return self.router or [RouterDescription(name=ROUTER)]

    @property
    def uplinks(self) -> list[NodePlan]:
        """The links between routers, each as a plan of the lower one."""
        return [
            NodePlan(each.name, "router", number, self.tunnel_mtu, each.uplink or "")
            for each, number in self._uplink_numbers()
        ]

    @property
    def nodes(self) -> list[NodePlan]:
        """All hosts but the routers."""
        described = [
            (role, host) for role in _ROLES for host in self._hosts(role)
        ]  # fmt: skip
        chosen = {n for _, host in described for n in _numbers(host)}
        free = (number for number in range(1, _LAST_LINK) if number not in chosen)
        found = []
        for role, host in described:
            mtu = self.mtu if role == "client" else self.tunnel_mtu
            number = int(host.address4.packed[2]) if host.address4 else next(free)
            at = host.router or self.routers[0].name
            found.append(
                NodePlan(host.name, role, number, mtu, at, host.address4, host.address6)
            )  # fmt: skip
        return found

    def _hosts(self, role: Role) -> list[HostDescription]:
        described: list[HostDescription] = getattr(self, role)
        count: int = getattr(self, f"{role}s")
        return described or [HostDescription(name=f"{role}{n}") for n in range(1, count + 1)]

    @property
    def vips(self) -> tuple[str, str]:
        """The VIPs of a fleet, IPv4 and IPv6: the first of each prefix that a host can have."""
        first4, first6 = (net[min(1, net.num_addresses - 1)] for net in (self.vips4, self.vips6))
        return str(first4), str(first6)

    def path(self, start: str, end: str) -> list[str]:
        """The routers from one to another, both included."""
        up = {each.name: each.uplink for each in self.routers}

        def to_the_top(name: str | None) -> list[str]:
            way = []
            while name:
                way.append(name)
                name = up[name]
            return way

        there, back = to_the_top(start), to_the_top(end)
        meeting = next(name for name in there if name in back)
        return [*there[: there.index(meeting) + 1], *reversed(back[: back.index(meeting)])]

    def drawn(self) -> str:
        """A picture of it, in text."""
        names = {role: [n.name for n in self.nodes if n.role == role] for role in _ROLES}
        head = "  ".join(names["client"])
        routers = ", ".join(each.name for each in self.routers)
        below = [("balancers", names["balancer"]), ("backends", names["backend"])]
        lines = [
            f"  {head}",
            f"  {'│'.center(len(head))}   MTU {self.mtu}",
            f"  {routers.center(len(head), '─')}   VIPs {self.vips4}, {self.vips6} by ECMP",
            f"  {'│'.center(len(head))}   MTU {self.tunnel_mtu}",
        ]
        for title, members in below:
            if members:
                lines.append(f"  ├─ {title}: {', '.join(members)}")
        return "\n".join(lines)


def _is_a_host(address: IPv4Address | IPv6Address, own: IPv4Network | IPv6Network) -> bool:
    if address not in own:
        return False
    if isinstance(address, IPv4Address):
        return 0 < address.packed[2] <= _LAST_LINK and 0 < address.packed[3] < _LAST_HOST
    return any(address.packed[8:])


def _numbers(host: HostDescription) -> Iterator[int]:
    """Numbers of links that somebody chose by an address."""
    if host.address4:
        yield int(host.address4.packed[2])
    if host.address6 and host.address6 in IPv6Network("fd77::/48"):
        yield int.from_bytes(host.address6.packed[6:8], "big")


__all__ = ["LINK", "ROUTER", "HostDescription", "NodePlan", "Role", "RouterDescription", "Topology"]
