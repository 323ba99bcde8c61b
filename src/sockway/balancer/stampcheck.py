"""Whether a server stamps: a connection made and looked at, as a client that stamps would.

A server tells its ID until it comes back. So the check ends its half of the connection, which every
server has to acknowledge, and by a packet that carries the ID: a server that tells its ID even on
that acknowledgement has not seen it. (One that tells it on the SYN-ACK alone, whatever comes back,
can't be told from one that has; those of Sockway do not.)
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any, Final, Literal

from sockway.balancer.config import checked
from sockway.balancer.stamped import counts
from sockway.balancer.stamping import loaded, told
from sockway.balancer.stampspec import StampingSpec
from sockway.balancer.stampwatch import ACK, RST, SYN, Seen, Watch
from sockway.errors import ConfigError, KernelError
from sockway.kernel import BpfObject, cgroup

_ASK: Final = 1  # s, until the kernel sends something that the server answers
_LOOK: Final = 0.05
_LARGEST: Final = 0xFFFFFF
"""Server ID."""
_NAME: Final = "sockway-check-"

Target = tuple[socket.AddressFamily, tuple[Any, ...]]


@dataclass(frozen=True)
class StampCheck:
    """What was found."""

    target: str
    """Address and port."""
    server_id: int | None
    """That the server told; None: it told none."""
    told: Literal["SYN-ACK", "later packet"] | None
    """With what."""
    echoed: bool | None
    """Whether it came back to the server; None: that can't be told."""
    wrote: int
    """Packets that this side wrote it on."""
    asked: int
    """Packets that this side asked on."""
    why: str
    """A sentence."""

    @property
    def ok(self) -> bool:
        """Whether the connection carries its server's ID, all the way."""
        return self.server_id is not None and self.server_id <= _LARGEST and self.echoed is True

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"ok": self.ok} | asdict(self)


def check(host: str, port: int, *, timeout: float = 3.0, **kinds: Any) -> StampCheck:
    """Connect to a server, and see whether it tells an ID and whether that comes back to it.

    A program is attached to a cgroup of its own, with this process in it; both are gone afterwards,
    however the process ends: nothing is pinned, and the next check removes an empty cgroup.

    Args:
        host: a name or an address.
        port: of TCP.
        timeout: seconds for the connection, and again for each thing that does not come at once.
        kinds: fields of `StampingSpec` that say how options look; `profile` may say all.

    Raises:
        ConfigError: the name is unknown, or a field is wrong.
        KernelError: there is no connection.
        FeatureError: the kernel has no cgroups of version 2, or takes no such program.
        PermissionDenied: this process may not attach programs, or not look at packets.

    """
    targets = _resolved(host, port)
    fields = {
        "name": "check", "client_ports": [port],
        "peers": [ip_network(address[0].partition("%")[0]) for _, address in targets], **kinds,
    }  # fmt: skip
    spec = checked(StampingSpec, fields, "how options look")
    _sweep()
    with (
        cgroup.temporary(f"{_NAME}{os.getpid()}") as place,
        cgroup.opened(place) as (fd, _),
        loaded(spec) as made,
        made.program("stamp") as program,
        program.attach_cgroup(fd),
        _connected(targets, timeout) as (sock, watch),
    ):
        return _Looking(spec, made, sock, watch, timeout).found()


class _Looking:
    """A connection that is looked at."""

    def __init__(
        self, spec: StampingSpec, made: BpfObject, sock: socket.socket, watch: Watch, timeout: float
    ) -> None:
        self._made, self._sock, self._watch, self._timeout = made, sock, watch, timeout
        self._spec = spec
        number = (spec.server_experiment or 0).to_bytes(2, "big")
        self._told = (
            bytes([spec.server_kind, 6])
            if spec.server_experiment is None
            else bytes([spec.server_kind, 8]) + number
        )

    def found(self) -> StampCheck:
        """Learn what the server tells, end, and see what it tells then."""
        # The kernel asks on these, and the server answers.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ASK)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ASK)
        self._until(lambda: self._id() is not None)
        server_id = self._id()
        echoed = None
        if server_id is not None and server_id <= _LARGEST:
            echoed = self._came_back()
        with self._made.map("counters") as counters:
            numbers = counts(counters)
        how: Literal["SYN-ACK", "later packet"] | None = None
        if server_id is not None:
            how = "SYN-ACK" if numbers["learnt"] else "later packet"
        return StampCheck(
            _shown(self._sock.getpeername()), server_id, how, echoed, numbers["wrote"],
            numbers["asked"], self._why(server_id, how, numbers["asked"], echoed=echoed),
        )  # fmt: skip

    def _id(self) -> int | None:
        with self._made.map("states") as states:
            return told(states, self._sock)

    def _came_back(self) -> bool | None:
        """End this side's half: does the server tell its ID still, having got that?"""
        with contextlib.suppress(OSError):  # the server was faster
            self._sock.shutdown(socket.SHUT_WR)
        if not self._until(lambda: bool(self._answers())):
            return None
        return not any(
            option.startswith(self._told)
            for answer in self._answers()[:1]
            for option in answer.options
        )

    def _answers(self) -> list[Seen]:
        """Packets that acknowledge the end of this side's half."""
        seen = self._watch.packets(self._sock.getsockname()[1])
        first = next((each.acknowledged for each in seen if each.flags & SYN), None)
        if first is None:
            return []
        ended = (first + 1) & 0xFFFFFFFF  # nothing was sent but the end
        return [
            each for each in seen if each.acknowledged == ended and each.flags & (ACK | RST) == ACK
        ]

    def _until(self, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + self._timeout
        while not done():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK)
        return True

    def _why(
        self, server_id: int | None, how: str | None, asked: int, *, echoed: bool | None
    ) -> str:
        if server_id is None:
            return (
                f"the server told no ID, though it was asked on {asked} packets: it does not stamp "
                "this port or for this client (server_ports, peers), or a box on the way strips "
                "options"
            )
        if server_id > _LARGEST:
            return (
                f"the server told {server_id:#010x}, an ID has 24 bits: it writes it in another "
                "byte order, or is of another fleet"
            )
        if echoed is None:
            return (
                "the server told an ID; whether it came back is unknown, for the server did not "
                "acknowledge the connection's end"
            )
        if not echoed:
            return (
                "the server tells an ID, and tells it still after packets that carry it: a box on "
                f"the way strips options of kind {self._spec.client_kind}, or the server expects "
                "another kind (client_kind)"
            )
        if how == "SYN-ACK":
            return "the ID came with the SYN-ACK, is on all packets of this side's, and came back"
        return (
            "the ID was not on the SYN-ACK as it came here, but the server told it when asked, and "
            "it came back"
        )


@contextlib.contextmanager
def _connected(targets: list[Target], timeout: float) -> Iterator[tuple[socket.socket, Watch]]:
    """A connection to the first of a server's addresses that takes one."""
    failed = []
    for family, address in targets:
        with (
            Watch(family, address) as watch,
            socket.socket(family, socket.SOCK_STREAM) as sock,
        ):
            sock.settimeout(timeout)
            try:
                sock.connect(address)
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else "no answer"
                failed.append(f"{_shown(address)}: {reason}")
                continue
            yield sock, watch
            return
    raise KernelError(
        f"can't connect to {'; '.join(failed)}",
        hint="stamps are of TCP connections: does a server listen there?",
    )


def _resolved(host: str, port: int) -> list[Target]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name"
        raise ConfigError(
            f"can't resolve {host!r}: {reason}", hint="name a host or an address"
        ) from None
    targets: list[Target] = []
    for family, _, _, _, address in found:
        parsed = ip_address(address[0])
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
            # It is IPv4 that is spoken.
            target: Target = (socket.AF_INET, (str(parsed.ipv4_mapped), port))
        else:
            target = (family, address)
        if target not in targets:
            targets.append(target)
    return targets


def _sweep() -> None:
    """Remove cgroups of checks that were killed."""
    for place in cgroup.mount().glob(f"{_NAME}*"):
        if not Path("/proc", place.name.removeprefix(_NAME)).exists():
            with contextlib.suppress(OSError):
                place.rmdir()


def _shown(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    if len(address) > 2 and address[3] and "%" not in host:  # noqa: PLR2004 - of IPv6
        with contextlib.suppress(OSError):
            host = f"{host}%{socket.if_indextoname(address[3])}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


__all__ = ["StampCheck", "check"]
