"""A network as data: clients, a router, balancers, backends, and the addresses that follow."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sockway.errors import ConfigError
from sockway.places import line_of, written

Role = Literal["client", "router", "balancer", "backend"]

ROUTER = "router"


@dataclass(frozen=True)
class NodePlan:
    """A host of the network, and its one link to the router."""

    name: str
    role: Role
    number: int
    """Of the link; it is in all of its addresses."""
    mtu: int

    @property
    def address4(self) -> str:
        """The host's end."""
        return f"10.77.{self.number}.2"

    @property
    def router4(self) -> str:
        """The router's end."""
        return f"10.77.{self.number}.1"

    @property
    def address6(self) -> str:
        """The host's end."""
        return f"fd77:0:0:{self.number:x}::2"

    @property
    def router6(self) -> str:
        """The router's end."""
        return f"fd77:0:0:{self.number:x}::1"


class Topology(BaseModel):
    """How many of each there are, and what their links carry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="lab", pattern=r"^[a-z][a-z0-9]{0,7}$")
    """The lab's; its namespaces are called sockway-NAME-NODE."""
    clients: int = Field(default=2, ge=1, le=50)
    balancers: int = Field(default=2, ge=0, le=50)
    backends: int = Field(default=3, ge=0, le=100)
    mtu: int = Field(default=1500, ge=1280, le=9000)
    """Of the clients' links."""
    tunnel_mtu: int = Field(default=1600, ge=1280, le=9000)
    """Of the links behind the router; larger, for a tunnel's headers come on top."""
    vips4: IPv4Network = IPv4Network("192.0.2.0/24")
    """Where IPv4 VIPs are: the router sends them to the balancers, in equal shares."""
    vips6: IPv6Network = IPv6Network("2001:db8:1::/64")

    @field_validator("vips4", "vips6")
    @classmethod
    def _apart(cls, value: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
        own = IPv4Network("10.77.0.0/16") if value.version == 4 else IPv6Network("fd77::/32")  # noqa: PLR2004
        if value.overlaps(own):
            message = f"{own} is the lab's own"
            raise ValueError(message)
        return value

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The topology in a TOML file.

        Raises:
            ConfigError: it names the file, the line and the field.

        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls.model_validate(tomllib.loads(text))
        except OSError as error:
            raise ConfigError(f"can't read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}", hint="see https://toml.io") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            line = line_of(text, first["loc"])
            where = f"{path}{f', line {line}' if line else ''}: {written(first['loc'])}"
            raise ConfigError(f"{where} can't be used", hint=first["msg"]) from None

    @property
    def nodes(self) -> list[NodePlan]:
        """All hosts but the router."""
        found: list[NodePlan] = []
        groups: tuple[tuple[Role, int, int], ...] = (
            ("client", self.clients, self.mtu),
            ("balancer", self.balancers, self.tunnel_mtu),
            ("backend", self.backends, self.tunnel_mtu),
        )
        for role, count, mtu in groups:
            for index in range(1, count + 1):
                found.append(NodePlan(f"{role}{index}", role, len(found) + 1, mtu))
        return found

    def drawn(self) -> str:
        """A picture of it, in text."""
        names = {role: [n.name for n in self.nodes if n.role == role] for role in
                 ("client", "balancer", "backend")}  # fmt: skip
        head = "  ".join(names["client"])
        below = [("balancers", names["balancer"]), ("backends", names["backend"])]
        lines = [
            f"  {head}",
            f"  {'│'.center(len(head))}   MTU {self.mtu}",
            f"  {ROUTER.center(len(head), '─')}   VIPs {self.vips4}, {self.vips6} by ECMP",
            f"  {'│'.center(len(head))}   MTU {self.tunnel_mtu}",
        ]
        for title, members in below:
            if members:
                lines.append(f"  ├─ {title}: {', '.join(members)}")
        return "\n".join(lines)


__all__ = ["ROUTER", "NodePlan", "Role", "Topology"]
