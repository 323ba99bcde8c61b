"""``sockway lab up|status|exec|down``: the network, for people to try things in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sockway.errors import NotFoundError
from sockway.lab import picture
from sockway.lab.fleet import HTTP, HTTP3, Fleet
from sockway.lab.network import LINK, Lab, names
from sockway.lab.topology import Topology

Name = Annotated[str, typer.Argument(help="The lab.")]


def up(
    topology: Path | None,
    encapsulation: Literal["ip", "gue"],
    tunnel: int,
    *,
    bare: bool,
    drawing: Path | None = None,
) -> dict[str, Any]:
    """Build the network, and start backends and balancers in it; draw it, if that is wanted.

    Raises:
        SockwayError: a part can't be made; nothing is left of it.

    """
    plan = Topology.read(topology) if topology else Topology()
    if drawing:
        picture.write(plan, drawing)
    lab = Lab.up(plan)
    try:
        if not bare:
            Fleet(lab, encapsulation, 4 if tunnel == 4 else 6).start()  # noqa: PLR2004
    except BaseException:
        lab.down()
        raise
    found = status(plan.name)
    for node in lab.nodes.values():
        node.close()
    return found


def draw(topology: Path | None, output: Path) -> None:
    """Draw the network that a file describes.

    Raises:
        ConfigError: the file can't be used, or the picture can't be written.

    """
    picture.write(Topology.read(topology) if topology else Topology(), output)


def status(name: str) -> dict[str, Any]:
    """What runs in a lab.

    Raises:
        NotFoundError: there is none of this name.

    """
    lab = Lab.existing(name)
    nodes = {}
    for node in lab.nodes.values():
        plan = node.plan
        nodes[node.name] = {
            "role": plan.role if plan else "router",
            "addresses": [plan.address4, plan.address6] if plan else [],
            "namespace": node.namespace,
            "processes": node.processes,
        }
        node.close()
    vips = lab.topology.vips
    return {
        "name": name,
        "picture": lab.topology.drawn(),
        "nodes": nodes,
        "vips": [f"{protocol}://{_bracketed(vip)}:{port}" for vip in vips
                 for protocol, port in (("tcp", HTTP), ("udp", HTTP), ("udp", HTTP3))],
    }  # fmt: skip


def execute(name: str, node: str, command: list[str]) -> int:
    """Run a command on a host of the lab; its exit status.

    Raises:
        NotFoundError: there is no such lab, host or command.

    """
    place = Lab.existing(name).node(node)
    environment = os.environ | {"SOCKWAY_LAB_NODE": node}
    try:
        process = place.popen(command, env=environment)
    except FileNotFoundError:
        raise NotFoundError(f"there is no command {command[0]!r}") from None
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # it got one of its own
            continue
        except subprocess.SubprocessError:
            process.kill()
            raise


def down(name: str) -> None:
    """Take a lab down, or what is left of one.

    Raises:
        NotFoundError: there is none of this name.

    """
    Lab.existing(name).down()


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


__all__ = ["LINK", "down", "draw", "execute", "names", "status", "up"]
