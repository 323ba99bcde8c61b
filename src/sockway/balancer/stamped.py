"""What a program of stamps has in its maps, as people say it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any, Literal

from sockway.balancer.layout import swapped
from sockway.balancer.stampspec import LAYOUT, Network, as_written
from sockway.kernel import Link, Map, cgroup


@dataclass(frozen=True)
class Stamped:
    """What is stamped, as the program has it."""

    name: str
    cgroup: Path | None
    """Whose processes' sockets; None: the cgroup is gone, and nothing is stamped."""
    server_id: int
    """0: this host is no server."""
    server_ports: list[int]
    client_ports: list[int]
    peers: list[Network]
    server_kind: int
    client_kind: int
    server_experiment: int | None
    client_experiment: int | None
    byte_order: Literal["big", "little"]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        place = None if self.cgroup is None else str(self.cgroup)
        return asdict(self) | {"cgroup": place, "peers": [str(peer) for peer in self.peers]}


def read(name: str, link: Link, pins: Mapping[str, Map]) -> Stamped:
    """Look into the maps of a program.

    Args:
        name: of the stamps.
        link: of the program to its cgroup.
        pins: its maps by the names of their pins.

    """
    config = pins["config"].read_variable("config", LAYOUT.types)
    settings = pins["settings"].read_variable("settings", LAYOUT.types)
    number = link.cgroup_id()
    return Stamped(
        name=name,
        cgroup=cgroup.path_of(number) if number else None,
        server_id=int(settings.server_id),
        server_ports=_ports(pins["ports"], "SERVER"),
        client_ports=_ports(pins["ports"], "CLIENT"),
        peers=_peers(pins["peers"]),
        server_kind=int(config.server_kind),
        client_kind=int(config.client_kind),
        server_experiment=swapped(int(config.server_experiment)) or None,
        client_experiment=swapped(int(config.client_experiment)) or None,
        byte_order="little" if config.little_endian else "big",
    )


def counts(counters: Map) -> dict[str, int]:
    """What happened, by `enum stamp_count`."""
    names = LAYOUT.names("stamp_count", "STAMP_COUNTS")
    rows = [cpu.count for cpu in counters[0]]
    return {
        name.removeprefix("stamp_"): sum(int(row[index]) for row in rows)
        for index, name in enumerate(names)
    }


def _ports(ports: Map, role: str) -> list[int]:
    bit = LAYOUT.constant("stamp_role", f"STAMP_{role}")
    return sorted(int(port) for port, roles in ports.items() if roles & bit)


def _peers(peers: Map) -> list[Network]:
    return as_written(
        {IPv6Network((struct.pack("<4I", *key.address), int(key.length))) for key in peers}
    )


__all__ = ["Stamped", "counts", "read"]
