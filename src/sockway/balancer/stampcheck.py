"""Whether a server stamps: a connection made and looked at, as a client that stamps would."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from typing import Any, Final, Literal

from sockway.balancer.stamping import Stamping, StampingSpec
from sockway.errors import ConfigError, KernelError
from sockway.kernel import cgroup

_ASK: Final = 1  # s, until the kernel sends something that the server answers
_LOOK: Final = 0.05
_LARGEST: Final = 0xFFFFFF
"""Server ID."""


@dataclass(frozen=True)
class StampCheck:
    """What was found."""

    target: str
    """Address and port."""
    server_id: int | None
    """That the server told; None: it told none."""
    told: Literal["SYN-ACK", "later packet"] | None
    """With what."""
    echoed: int
    """Packets that this side wrote it on."""
    asked: int
    """Packets that this side asked on."""
    why: str
    """A sentence."""

    @property
    def ok(self) -> bool:
        """Whether the connection carries its server's ID."""
        return self.server_id is not None and self.server_id <= _LARGEST and self.echoed > 0

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"ok": self.ok} | asdict(self)


def check(host: str, port: int, *, timeout: float = 3.0, **kinds: Any) -> StampCheck:
    """Connect to a server, and see whether it tells an ID and how it comes back.

    A program is attached to a cgroup of its own, with this process in it; both are gone afterwards.

    Args:
        host: a name or an address.
        port: of TCP.
        timeout: seconds for the connection, and again for an ID that does not come at once.
        kinds: fields of `StampingSpec` that say how options look, `profile` among them.

    Raises:
        ConfigError: the name is unknown, or a field is wrong.
        KernelError: there is no connection.
        FeatureError: the kernel has no cgroups of version 2, or takes no such program.
        PermissionDenied: this process may not attach programs.

    """
    family, address = _resolved(host, port)
    with cgroup.temporary(f"sockway-check-{os.getpid()}") as place:
        spec = StampingSpec(
            name=f"check-{os.getpid()}", cgroup=place, client_ports=[port],
            peers=[ip_network(address)], **kinds,
        )  # fmt: skip
        stamping = Stamping.up(spec)
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.settimeout(timeout)
                try:
                    sock.connect((address, port))
                except OSError as error:
                    reason = os.strerror(error.errno) if error.errno else "no answer"
                    raise KernelError(
                        f"can't connect to {_shown(address, port)}: {reason}",
                        hint="stamps are of TCP connections: does a server listen there?",
                    ) from None
                _wait(stamping, sock, timeout)
                return _found(stamping, sock, _shown(address, port))
        finally:
            stamping.down()


def _wait(stamping: Stamping, sock: socket.socket, timeout: float) -> None:
    """Until an ID is known: the kernel asks on packets that the server answers."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ASK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        counters = stamping.counters()
        if counters["learnt"] + counters["learnt_late"] and counters["wrote"]:
            return
        time.sleep(_LOOK)


def _found(stamping: Stamping, sock: socket.socket, target: str) -> StampCheck:
    counters = stamping.counters()
    server_id = stamping.id_of(sock)
    told: Literal["SYN-ACK", "later packet"] | None = None
    if server_id is not None:
        told = "SYN-ACK" if counters["learnt"] else "later packet"
    wrote, asked = counters["wrote"], counters["asked"]
    if server_id is None:
        why = (
            f"the server told no ID, though it was asked on {asked} packets: it does not stamp "
            "this port or for this client (server_ports, peers), or a box on the way strips options"
        )
    elif server_id > _LARGEST:
        why = (
            f"the server told {server_id:#010x}, an ID has 24 bits: it writes it in another byte "
            "order, or is of another fleet"
        )
    elif not wrote:
        why = "the server told an ID, and this side has written no packet since"
    elif told == "SYN-ACK":
        why = "the ID came with the SYN-ACK, and is on all packets of this side's"
    else:
        why = "the ID was not on the SYN-ACK as it came here, but the server told it when asked"
    return StampCheck(target, server_id, told, wrote, asked, why)


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"can't resolve {host!r}: {error.strerror}") from None
    family, _, _, _, address = found[0]
    return family, str(address[0])


def _shown(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


__all__ = ["StampCheck", "check"]
