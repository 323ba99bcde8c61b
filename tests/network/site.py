"""A client, a balancer and a backend, joined by devices of any kind, with real sockets.

The client's packets reach a VIP by the balancer alone: its kernel has no route to VIPs. Answers
come back by the balancer's kernel, which forwards them as a router would.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from sockway.balancer import Balancer, BalancerSpec
from sockway.balancer.host import Host, HostSpec
from sockway.kernel import Netns
from sockway.lab import interfaces, namespaces

VIP4: Final = "192.0.2.1"
VIP6: Final = "2001:db8:1::1"
PORT: Final = 80
PATIENCE: Final = 5.0
WINDOW: Final = 4
CLOSED: Final = 9
UP_SECONDS: Final = 60.0


class Place:
    """A host: a network namespace with a name."""

    def __init__(self, name: str) -> None:
        """Open the namespace, which is there."""
        self.name = name
        self.netns = Netns.from_path(namespaces.NAMESPACES / name)

    def ip(self, *lines: str) -> None:
        """Run `ip` with each line; the first that fails is the error."""
        batch = "\n".join(lines) + "\n"
        done = subprocess.run(
            ["ip", "-n", self.name, "-batch", "-"],
            input=batch, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stderr}\n{batch}"

    def sh(self, script: str) -> str:
        """Run lines of a shell; the first that fails is the error."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.name, "sh", "-euc", script],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def settle(self, device: str, *addresses: str, mtu: int = 0, link: str = "") -> None:
        """Set a device up with addresses."""
        self.ip(
            *([f"link set {device} mtu {mtu}"] if mtu else []),
            *([f"link set {device} address {link}"] if link else []),
            f"link set {device} up",
            *(f"addr add {a} dev {device}{' nodad' * (':' in a)}" for a in addresses),
        )


@dataclass
class Server:
    """Echoes lines and datagrams at VIPs, and counts them. One thread."""

    datagrams: set[bytes] = field(default_factory=set)
    connections: int = 0
    octets: int = 0
    """That came by TCP."""

    @classmethod
    @contextlib.contextmanager
    def serving(cls, place: Place, *vips: str, port: int = PORT) -> Iterator[Self]:
        """Serve while the block lasts."""
        made, stop = cls(), threading.Event()
        sockets = place.netns.run(lambda: [_listening(vip, port) for vip in vips])
        thread = threading.Thread(target=made._serve, args=(sockets, stop), daemon=True)
        thread.start()
        try:
            yield made
        finally:
            stop.set()
            thread.join()

    def _serve(
        self, pairs: Sequence[tuple[socket.socket, socket.socket]], stop: threading.Event
    ) -> None:
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            for listener, datagrams in pairs:
                selector.register(stack.enter_context(listener), 1, self._accept)
                selector.register(stack.enter_context(datagrams), 1, self._datagram)
            while not stop.is_set():
                for key, _ in selector.select(0.05):
                    key.data(key.fileobj, selector, stack)

    def _accept(
        self, listener: socket.socket, selector: selectors.BaseSelector, stack: Any
    ) -> None:
        connection, _ = listener.accept()
        self.connections += 1
        selector.register(stack.enter_context(connection), 1, self._echo)

    def _echo(
        self, connection: socket.socket, selector: selectors.BaseSelector, stack: Any
    ) -> None:
        del stack
        data = b""
        with contextlib.suppress(ConnectionError):
            data = connection.recv(1 << 16)
        self.octets += len(data)
        if data:
            connection.sendall(data)
            return
        selector.unregister(connection)
        connection.close()

    def _datagram(self, sock: socket.socket, *_: object) -> None:
        data, peer = sock.recvfrom(1 << 16)
        self.datagrams.add(data)
        sock.sendto(data, peer)


def _listening(vip: str, port: int) -> tuple[socket.socket, socket.socket]:
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    listener, datagrams = (
        socket.socket(family, k) for k in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    )
    for sock in (listener, datagrams):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((vip, port))
    listener.listen()
    return listener, datagrams


def socket_of(place: Place, vip: str, kind: socket.SocketKind, port: int = PORT) -> socket.socket:
    """Return a socket of a host that is connected to a VIP."""
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET

    def make() -> socket.socket:
        sock = socket.socket(family, kind)
        sock.settimeout(PATIENCE)
        sock.connect((vip, port))
        return sock

    return place.netns.run(make)


def reach(place: Place, *addresses: str) -> None:
    """Return when a host's kernel answers at these addresses: devices and neighbours are there.

    What a device loses while it comes up is not what is tried. A closed port answers, too.
    """

    def try_once(address: str) -> bool:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(1)
            with contextlib.suppress(TimeoutError):
                return sock.connect_ex((address, CLOSED)) == errno.ECONNREFUSED
        return False

    end = time.monotonic() + UP_SECONDS
    for address in addresses:
        while not place.netns.run(lambda: try_once(address)):  # noqa: B023 - run at once
            assert time.monotonic() < end, f"{place.name} does not reach {address}"
            time.sleep(0.1)


def answers(place: Place, vip: str, count: int, size: int = 64) -> int:
    """Send datagrams of `size` octets, each its own; return how many were answered.

    Few are on the way at a time: queues of sockets and of neighbours that are not known yet are
    not what is tried.
    """
    wanted = [f"{vip} {n} ".encode().ljust(size, b".") for n in range(count)]
    got: set[bytes] = set()
    with socket_of(place, vip, socket.SOCK_DGRAM) as sock:
        for start in range(0, count, WINDOW):
            part = wanted[start : start + WINDOW]
            for each in part:
                sock.send(each)
            with contextlib.suppress(TimeoutError):
                while not got.issuperset(part):
                    got.add(sock.recv(1 << 16))
    return len(got.intersection(wanted))


def echoed(place: Place, vip: str, octets: int) -> int:
    """Send so many octets by a TCP connection; return how many came back as they were sent."""
    sent = bytes(range(256)) * (octets // 256)
    with socket_of(place, vip, socket.SOCK_STREAM) as sock:
        writer = threading.Thread(target=lambda: _send(sock, sent))
        writer.start()
        got = bytearray()
        with contextlib.suppress(TimeoutError, ConnectionError):
            while len(got) < len(sent) and (data := sock.recv(1 << 16)):
                got += data
        writer.join()
    return len(got) if sent.startswith(bytes(got)) else -1


def _send(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


@dataclass
class Site:
    """The three hosts."""

    client: Place
    balancer: Place
    backend: Place
    root: Path
    """Of bpffs."""

    @contextlib.contextmanager
    def balanced(
        self, device: str, backend: str, *, mode: str = "auto", encapsulation: str = "ip",
        vips: Sequence[str] = (VIP4, VIP6), gue_port: int = 6080,
    ) -> Iterator[Balancer]:  # fmt: skip
        """Balance while the block lasts: packets come in by `device` and go to an address."""
        listen = [f"[{vip}]" if ":" in vip else vip for vip in vips]
        spec = BalancerSpec.model_validate({
            "interfaces": [device], "mode": mode, "secret": "a secret of the fleet",
            "pool": {"web": {
                "encapsulation": encapsulation, "backends": {"web1": backend},
                **({"gue_port": gue_port} if encapsulation == "gue" else {}),
            }},
            "vip": [{"listen": f"{protocol}://{vip}:{PORT}", "pool": "web"}
                    for vip in listen for protocol in ("tcp", "udp")],
        })  # fmt: skip
        with (
            self.balancer.netns.entered(),
            contextlib.closing(Balancer.open(spec, root=self.root)) as made,
        ):
            try:
                made.apply(spec)
                yield made
            finally:
                made.remove()

    @contextlib.contextmanager
    def opened(
        self, device: str, *, vips: Sequence[str] = (VIP4, VIP6), balancers: Sequence[str] = ()
    ) -> Iterator[Host]:
        """Have the backend open tunnels while the block lasts."""
        spec = HostSpec.model_validate({
            "interfaces": [device], "balancers": balancers or ["10.0.0.0/8", "fd00::/8"],
            "vips": vips,
        })  # fmt: skip
        with self.backend.netns.entered():
            host = Host.up(spec, root=self.root)
            try:
                yield host
            finally:
                host.down()


@contextlib.contextmanager
def site(root: Path) -> Iterator[Site]:
    """Make the hosts; all of it goes when the block ends."""
    made: list[str] = []
    places: list[Place] = []
    try:
        for name in ("t-client", "t-balancer", "t-backend"):
            namespaces.create(name, made)
            place = Place(name)
            places.append(place)
            place.netns.run(_settle)
        places[1].netns.run(_forward)
        client, balancer, backend = places
        yield Site(client, balancer, backend, root)
    finally:
        for place in places:
            place.netns.close()
        for name in made:
            namespaces.remove(name)


def _settle() -> None:
    interfaces.settle_host()
    for where in ("all", "default"):
        interfaces.write(f"net/ipv4/conf/{where}/rp_filter", "0")
        # Else the device below a macvlan answers ARP for it, and packets come in by that one.
        interfaces.write(f"net/ipv4/conf/{where}/arp_ignore", "1")
    with interfaces.netlink() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")


def _forward() -> None:
    interfaces.write("net/ipv4/ip_forward", "1")
    interfaces.write("net/ipv6/conf/all/forwarding", "1")
