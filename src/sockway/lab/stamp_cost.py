"""What stamps cost the hosts: octets on the wire, a bulk transfer, requests a second.

Two hosts in namespaces, a link between them; the program on a cgroup that both ends' processes are
in. With and without it by turns, in one run; what is compared are neighbours.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from ipaddress import ip_network
from typing import Final

from sockway.balancer.stamping import Stamping, StampingSpec
from sockway.errors import StateError
from sockway.kernel import Netns, cgroup
from sockway.lab.marks import prefix
from sockway.lab.sandbox import end_with_parent

CLIENT, SERVER, PORT = "10.7.0.1", "10.7.0.2", 7777
SYSTEMS: Final = ("plain", "stamped")
UNITS: Final = {
    "bulk": "Gbit/s", "requests": "requests/s", "connections": "connections/s",
    "octets": "octets/packet",
}  # fmt: skip
_CHUNK: Final = 1 << 20

Figures = dict[str, list[dict[str, float]]]
"""By system: those of each round, by name."""


@contextmanager
def hosts() -> Iterator[tuple[Netns, Netns]]:
    """Two, with a link between them."""
    # Here, for it takes longer to import than all else together.
    from pyroute2 import IPRoute  # noqa: PLC0415

    with Netns.create() as client, Netns.create() as server:
        with client.entered(), IPRoute() as route:
            route.link("add", ifname="eth0", kind="veth", peer="eth1")
            index = route.link_lookup(ifname="eth1")[0]
            route.link("set", index=index, net_ns_fd=server.fd)
        for host, name, address in ((client, "eth0", CLIENT), (server, "eth1", SERVER)):
            with host.entered(), IPRoute() as route:
                index = route.link_lookup(ifname=name)[0]
                route.link("set", index=index, state="up")
                route.addr("add", index=index, address=address, prefixlen=24)
        yield client, server


def _serve(listener: socket.socket) -> None:
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while data := connection.recv(_CHUNK):
                if len(data) == 1:
                    connection.send(data)


@contextmanager
def serving(host: Netns) -> Iterator[None]:
    """A process that answers each octet by one, but those of chunks."""
    listener = host.run(lambda: socket.create_server((SERVER, PORT)))
    child = os.fork()
    if not child:
        try:
            _serve(listener)
        finally:
            os._exit(1)
    listener.close()
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def sent(host: Netns) -> tuple[int, int]:
    """Octets and packets that the client's link has sent."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    with host.entered(), IPRoute() as route:
        stats = route.get_links(ifname="eth0")[0].get("stats64")
    return int(stats["tx_bytes"]), int(stats["tx_packets"])


def measure(client: Netns, seconds: float) -> dict[str, float]:
    """All figures, once."""
    chunk = bytes(_CHUNK)

    def connect() -> socket.socket:
        sock = socket.create_connection((SERVER, PORT))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def rate(once: Callable[[], object]) -> float:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            once()
            count += 1
        return count / (time.perf_counter() - began)

    with client.run(connect) as sock:
        bulk = rate(lambda: sock.sendall(chunk)) * _CHUNK * 8 / 1e9
    with client.run(connect) as sock:
        before = sent(client)
        requests = rate(lambda: (sock.send(b"?"), sock.recv(1)))
        after = sent(client)

    def connection() -> None:
        with connect() as sock:
            sock.send(b"?")
            sock.recv(1)

    connections = client.run(lambda: rate(connection))
    octets = (after[0] - before[0]) / (after[1] - before[1])
    return {"bulk": bulk, "requests": requests, "connections": connections, "octets": octets}


@contextmanager
def stamped(spec: StampingSpec) -> Iterator[None]:
    """With the program."""
    made = Stamping.up(spec)
    try:
        yield
        if not made.counters()["echoed"]:
            raise StateError("nothing was stamped")
    finally:
        made.down()


def compare(rounds: int, seconds: float, tell: Callable[[int], None]) -> Figures:
    """Both systems by turns; `tell` is called with the number of turns that are done.

    Raises:
        SockwayError: the program can't be attached here, or does nothing.

    """
    found: Figures = {system: [] for system in SYSTEMS}
    name = f"{prefix()}stamp"
    with cgroup.temporary(name) as place, hosts() as (client, server):
        spec = StampingSpec(
            name=name, cgroup=place, server_id=1, server_ports=[PORT], client_ports=[PORT],
            peers=[ip_network("10.7.0.0/24")], server_kind=0xB6, client_kind=0xB7,
        )  # fmt: skip
        for number in range(2 * rounds):
            system = SYSTEMS[number % 2]
            with stamped(spec) if system == "stamped" else nullcontext(), serving(server):
                found[system].append(measure(client, seconds))
            tell(number + 1)
    return found


def ratios(found: Figures, metric: str) -> list[float]:
    """Of neighbours, for the machine is another one after a while."""
    pairs = zip(*(found[system] for system in SYSTEMS), strict=True)
    return [with_it[metric] / without[metric] for without, with_it in pairs]


__all__ = ["SYSTEMS", "UNITS", "Figures", "compare", "ratios"]
