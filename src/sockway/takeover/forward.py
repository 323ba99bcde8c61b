"""Packets for another process: an envelope around each, and a host-local socket to receive them.

Each process has an *inbox*, a UDP socket on 127.0.0.1, and a file in the common directory that
says where it is. An envelope holds what the kernel would have told the owner: which VIP the packet
came to and from where. It starts with a secret out of that file, for on loopback anybody could
send one.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import struct
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

# Secret, VIP, address (IPv4 in the first four octets), port, scope, whether it is IPv4.
_ENVELOPE: Final = struct.Struct("!8sQ16sHIB")
_SECRET_OCTETS: Final = 8
_BATCH: Final = 64
_BUFFER: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33
_KNOWN_PEERS: Final = 65_536

Address = tuple[str, int] | tuple[str, int, int, int]
Deliver = Callable[[bytes, Address], None]


class Owner(NamedTuple):
    """A process, as connection IDs name it."""

    generation: int
    """Its number modulo 256."""
    worker: int

    @property
    def file(self) -> str:
        """Where its inbox is told."""
        return f"{self.generation}.{self.worker}.inbox"


def vip_id(key: str) -> int:
    """What an envelope calls a VIP: numbers in a list differ from process to process."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest())


class Inbox:
    """Where this process receives its packets from others."""

    def __init__(self, directory: Path, me: Owner) -> None:
        """Open it, and tell where it is."""
        self._secret = secrets.token_bytes(_SECRET_OCTETS)
        self._file = directory / me.file
        self.received = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        try:
            # Bursts wait here while the process is busy: as much room as can be had.
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self.socket.bind(("127.0.0.1", 0))
        place = {"port": self.socket.getsockname()[1], "secret": self._secret.hex()}
        new = self._file.with_suffix(".new")
        new.touch(0o600)
        new.write_text(json.dumps(place), encoding="ascii")
        new.rename(self._file)

    def read(self, deliver: Callable[[int, bytes, Address], None]) -> None:
        """Deliver what waits, some of it: VIP, packet, where from."""
        for _ in range(_BATCH):
            try:
                data = self.socket.recv(65_535)
            except (BlockingIOError, ConnectionRefusedError):
                return
            if len(data) < _ENVELOPE.size:
                continue
            secret, vip, packed, port, scope, is_v4 = _ENVELOPE.unpack_from(data)
            if not secrets.compare_digest(secret, self._secret):
                continue
            self.received += 1
            peer: Address
            if is_v4:
                peer = (socket.inet_ntop(socket.AF_INET, packed[:4]), port)
            else:
                peer = (socket.inet_ntop(socket.AF_INET6, packed), port, 0, scope)
            deliver(vip, data[_ENVELOPE.size :], peer)

    def close(self) -> None:
        """Receive no more."""
        self.socket.close()
        self._file.unlink(missing_ok=True)


class _Peer(NamedTuple):
    socket: socket.socket
    secret: bytes


class Peers:
    """The inboxes of other processes."""

    def __init__(self, directory: Path) -> None:
        """Look for them in *directory*, when they are needed."""
        self._directory = directory
        self._open: dict[Owner, _Peer | None] = {}
        self._packed: dict[tuple[str, int], bytes] = {}
        self.forwarded = 0
        self.dropped = 0

    def send(self, owner: Owner, vip: int, data: bytes, peer: Address) -> bool:
        """Forward a packet of *peer*'s; False if *owner* is gone."""
        try:
            to = self._open[owner]
        except KeyError:
            to = self._open[owner] = self._find(owner)
        if to is None:
            return False
        scope = peer[3] if len(peer) == 4 else 0  # noqa: PLR2004 - an IPv6 address has four parts
        packed = self._address(peer)
        envelope = _ENVELOPE.pack(to.secret, vip, packed, peer[1], scope, len(peer) == 2)  # noqa: PLR2004
        try:
            to.socket.send(envelope + data)
        except ConnectionRefusedError:
            to.socket.close()
            self._open[owner] = None
            return False
        except OSError:
            self.dropped += 1
        else:
            self.forwarded += 1
        return True

    def is_there(self, owner: Owner) -> bool:
        """Whether *owner* lives, as far as is known."""
        known = self._open.get(owner, True) is not None
        return known and (self._directory / owner.file).exists()

    def _find(self, owner: Owner) -> _Peer | None:
        try:
            place = json.loads((self._directory / owner.file).read_text("ascii"))
            to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            to.setblocking(False)
            to.connect(("127.0.0.1", place["port"]))
            return _Peer(to, bytes.fromhex(place["secret"]))
        except (OSError, ValueError, KeyError):
            return None

    def _address(self, peer: Address) -> bytes:
        key = (peer[0], len(peer))
        packed = self._packed.get(key)
        if packed is None:
            if len(self._packed) > _KNOWN_PEERS:
                self._packed.clear()
            family = socket.AF_INET if len(peer) == 2 else socket.AF_INET6  # noqa: PLR2004
            packed = self._packed[key] = socket.inet_pton(family, peer[0]).ljust(16, b"\0")
        return packed

    def close(self) -> None:
        """Close what was opened."""
        for peer in self._open.values():
            if peer is not None:
                with contextlib.suppress(OSError):
                    peer.socket.close()
        self._open.clear()
