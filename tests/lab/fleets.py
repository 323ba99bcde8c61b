"""A lab with a fleet for tests, and clients in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from aioquic.asyncio.client import connect
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration

from sockway.balancer import Balancer
from sockway.lab.fleet import HTTP, HTTP3, POOL, Fleet
from sockway.lab.load.http3 import Client
from sockway.lab.network import Lab, Node
from sockway.lab.topology import Topology


@contextlib.contextmanager
def fleet_up(fleet: dict[str, Any] | None = None, **topology: Any) -> Iterator[Fleet]:
    """A running fleet in a lab of its own; all of it goes with the block."""
    with fleet_of(fleet, **topology) as made:
        made.start()
        yield made


@contextlib.contextmanager
def fleet_of(fleet: dict[str, Any] | None = None, **topology: Any) -> Iterator[Fleet]:
    """Hosts of a fleet, and nothing that runs on them."""
    name = f"t{uuid.uuid4().hex[:6]}"
    with Lab.up(Topology(name=name, **topology)) as lab:
        yield Fleet(lab, **(fleet or {}))


def ask(node: Node, vip: str, count: int, kind: socket.SocketKind) -> Counter[str]:
    """Who answers so many connections or datagrams of a host, each a flow of its own."""

    def asking() -> Counter[str]:
        answers: Counter[str] = Counter()
        family = socket.AF_INET6 if ":" in vip else socket.AF_INET
        for _ in range(count):
            with socket.socket(family, kind) as sock:
                sock.settimeout(3)
                sock.connect((vip, HTTP))
                sock.send(b"who\n")
                answers[sock.recv(100).split()[0].decode()] += 1
        return answers

    return node.run(asking)


def ask_http3(node: Node, vip: str) -> str:
    """Who answers an HTTP/3 request of a host."""

    async def asking() -> bytes:
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE
        )
        async with connect(
            vip, HTTP3, configuration=configuration, create_protocol=Client
        ) as protocol:
            return await cast("Client", protocol).get("localhost", "/", 5)

    return node.run(lambda: asyncio.run(asking())).decode()


def transfer(node: Node, vip: str, octets: int) -> tuple[int, int]:
    """Octets that come back of a download, and of an upload that is echoed."""

    def transferring() -> tuple[int, int]:
        with socket.create_connection((vip, HTTP), timeout=10) as sock:
            sock.sendall(b"SEND %d\n" % octets)
            down = _read(sock, octets)
            sock.sendall(b"x" * (octets // 10) + b"\n")
            return down, _read(sock, octets // 10)

    return node.run(transferring)


def _read(sock: socket.socket, octets: int) -> int:
    read = 0
    while read < octets:
        got = len(sock.recv(1 << 16))
        if not got:
            break
        read += got
    return read


def balancer(node: Node, work: str, *arguments: object) -> Any:
    """Do something with the balancer of a host."""

    def inside() -> object:
        with Balancer.existing() as found:
            return getattr(found, work)(*arguments)

    return node.run(inside)


def agent_of(node: Node, file: Path) -> subprocess.Popen[str]:
    """`sockway balancer run`, when it is ready."""
    process = node.popen(
        [sys.executable, "-m", "sockway", "balancer", "run", "--json", str(file)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        assert '"error"' not in line
        if '"ready"' in line:
            return process
    pytest.fail(f"the agent ended: {lines}")


def toml_of(fleet: Fleet, more: str = "") -> str:
    """The fleet's configuration as a file."""
    spec = fleet.spec(fleet.members.items())
    lines = [more, f'interfaces = ["{spec.interfaces[0]}"]', f'secret = "{spec.secret}"']
    for vip in spec.vip:
        lines += ["[[vip]]", f'listen = "{vip.listen}"', f'pool = "{vip.pool}"']
    lines += [f"[pool.{POOL}]", f'encapsulation = "{fleet.encapsulation}"']
    if fleet.health:
        lines.append(f"[pool.{POOL}.health]")
        lines += [f"{field} = {json.dumps(value)}" for field, value in fleet.health.items()]
    lines.append(f"[pool.{POOL}.backends]")
    backends = spec.pool[POOL].backends
    lines += [f'{name} = "{backend.address}"' for name, backend in backends.items()]
    return "\n".join(lines)
