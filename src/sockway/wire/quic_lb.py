"""QUIC connection IDs that name their server (draft-ietf-quic-load-balancers).

A balancer that finds the server by the ID needs no memory of connections, and neither a change
of balancers nor of backends nor of the client's address moves a connection. An ID is

    first octet | server ID | nonce | octets of the server's own

The first octet's three high bits name the configuration that made it (0 to 6; 7 says that no
configuration did: "unroutable"), so that configurations can be exchanged while connections
live: balancers know the new one before the first server uses it, and the old one until the last
connection of its time has ended. The low five bits are the length of what follows, or random.

Server ID and nonce stand there in clear, or encrypted with AES-128 and a key that balancers
and servers share, so that an observer can't tell which IDs lead to one server:

- together 16 octets: one block (section 5.4.1 of the draft);
- any other length up to 19: a Feistel network of four rounds over two halves (section 5.4.2).
  A half is put at the start of a block of zeros whose last two octets are the length and the
  round; the other half is changed by as much of the encrypted block as it has octets. With an
  odd length the octet in the middle is shared: its high four bits are the left half's.

This file computes; where keys come from and who may know them is the caller's business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sockway.errors import ConfigError
from sockway.extras import clear_imports

UNROUTABLE: Final = 7
"""The rotation bits of an ID that no configuration made."""

KEY_LENGTH: Final = 16
"""Octets of an AES-128 key."""

MAX_TOGETHER: Final = 19
"""Octets that server ID and nonce can have together: a connection ID has 20."""

LEAST_NONCE: Final = 4
"""Octets of a nonce; the draft's least."""

_BLOCK: Final = 16
_ROUNDS: Final = 4

Cipher = Callable[[bytes], bytes]
"""One block in, one block out."""


@dataclass(frozen=True)
class QuicLbConfig:
    """One configuration, as balancers and servers share it.

    Raises:
        ConfigError: a value that the draft does not allow; it names the value and the limit.

    """

    rotation: int
    """Number of the configuration in the IDs, 0 to 6."""
    server_id_length: int
    """Octets, 1 to 15."""
    nonce_length: int
    """Octets, 4 to 18; together with the server ID's 19 at most."""
    key: bytes | None = field(default=None, repr=False)
    """16 octets; None: IDs are in clear."""
    self_encoding: bool = True
    """Whether the low bits of the first octet are the length of what follows."""

    def __post_init__(self) -> None:
        """Check what was given."""
        _within("rotation", self.rotation, 0, UNROUTABLE - 1)
        _within("server_id_length", self.server_id_length, 1, 15)
        _within("nonce_length", self.nonce_length, LEAST_NONCE, 18)
        _within("server_id_length + nonce_length", self.together, 1, MAX_TOGETHER)
        if self.key is not None and len(self.key) != KEY_LENGTH:
            raise ConfigError(
                f"a QUIC-LB key has {KEY_LENGTH} octets, not {len(self.key)}",
                hint="make one with: openssl rand -hex 16",
            )

    @property
    def together(self) -> int:
        """Octets of server ID and nonce."""
        return self.server_id_length + self.nonce_length

    @property
    def length(self) -> int:
        """Octets of an ID without octets of the server's own."""
        return 1 + self.together


def _within(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{name} is {value}", hint=f"it can be {least} to {most}")


class QuicLb:
    """Makes and reads the IDs of one configuration."""

    def __init__(self, config: QuicLbConfig) -> None:
        """Take the configuration; a key is made ready here."""
        self.config = config
        self._encrypt: Cipher | None = None
        self._decrypt: Cipher | None = None
        if config.key is not None:
            self._encrypt, self._decrypt = aes(config.key)

    def encode(self, server_id: bytes, nonce: bytes | None = None, own: bytes = b"") -> bytes:
        """An ID that leads to a server.

        Args:
            server_id: `server_id_length` octets.
            nonce: `nonce_length` octets that this server has not used before with this key;
                random if not given.
            own: octets of the server's own, put behind.

        Raises:
            ValueError: a length that is not the configuration's, or an ID over 20 octets.

        """
        config = self.config
        if nonce is None:
            nonce = os.urandom(config.nonce_length)
        if len(server_id) != config.server_id_length or len(nonce) != config.nonce_length:
            message = (
                f"a server ID of {config.server_id_length} octets and a nonce of "
                f"{config.nonce_length} are needed, not {len(server_id)} and {len(nonce)}"
            )
            raise ValueError(message)
        length = config.together + len(own)
        if length > MAX_TOGETHER:
            message = f"a connection ID has 20 octets at most, not {1 + length}"
            raise ValueError(message)
        low = length if config.self_encoding else os.urandom(1)[0] & 0x1F
        return bytes([config.rotation << 5 | low]) + self._sealed(server_id + nonce) + own

    def decode(self, connection_id: bytes) -> bytes | None:
        """The server ID in an ID; None if the ID is of another configuration or too short."""
        config = self.config
        if len(connection_id) < config.length or connection_id[0] >> 5 != config.rotation:
            return None
        return self._opened(connection_id[1 : config.length])[: config.server_id_length]

    def _sealed(self, plain: bytes) -> bytes:
        if self._encrypt is None:
            return plain
        if len(plain) == _BLOCK:
            return self._encrypt(plain)
        return feistel(self._encrypt, plain, range(1, _ROUNDS + 1))

    def _opened(self, sealed: bytes) -> bytes:
        if self._encrypt is None or self._decrypt is None:
            return sealed
        if len(sealed) == _BLOCK:
            return self._decrypt(sealed)
        return feistel(self._encrypt, sealed, range(_ROUNDS, 0, -1))


class QuicLbReader:
    """Reads IDs of several configurations that live at once, as a balancer does."""

    def __init__(self, configs: Iterable[QuicLbConfig]) -> None:
        """Take the configurations.

        Raises:
            ConfigError: two have the same rotation number.

        """
        self._codecs: dict[int, QuicLb] = {}
        for config in configs:
            if config.rotation in self._codecs:
                raise ConfigError(
                    f"two QUIC-LB configurations have rotation {config.rotation}",
                    hint="each that lives at the same time needs a number of its own, 0 to 6",
                )
            self._codecs[config.rotation] = QuicLb(config)

    def decode(self, connection_id: bytes) -> bytes | None:
        """The server ID in an ID; None for an unroutable one, or of no configuration here."""
        if not connection_id:
            return None
        codec = self._codecs.get(connection_id[0] >> 5)
        return codec.decode(connection_id) if codec else None


def unroutable(length: int) -> bytes:
    """A random ID that says of itself that no configuration made it.

    Raises:
        ValueError: a length that is not 1 to 20.

    """
    if not 1 <= length <= MAX_TOGETHER + 1:
        message = f"a connection ID has 1 to 20 octets, not {length}"
        raise ValueError(message)
    return bytes([UNROUTABLE << 5 | (length - 1)]) + os.urandom(length - 1)


def aes(key: bytes) -> tuple[Cipher, Cipher]:
    """AES-128 of single blocks with this key: to encrypt, to decrypt.

    Raises:
        MissingExtra: the package `cryptography` is not installed.

    """
    with clear_imports():
        from cryptography.hazmat.primitives.ciphers import (  # noqa: PLC0415 - optional
            Cipher as Aes,
        )
        from cryptography.hazmat.primitives.ciphers import (  # noqa: PLC0415
            algorithms,
            modes,
        )
    # ECB of single blocks that do not repeat is what the draft asks for.
    cipher = Aes(algorithms.AES(key), modes.ECB())  # noqa: S305

    def encrypt(block: bytes) -> bytes:
        return cipher.encryptor().update(block)

    def decrypt(block: bytes) -> bytes:
        return cipher.decryptor().update(block)

    return encrypt, decrypt


def feistel(encrypt: Cipher, data: bytes, rounds: Iterable[int]) -> bytes:
    """The network of four rounds: 1 to 4 encrypt, 4 to 1 decrypt.

    Odd rounds change the right half by the left one, even rounds the other way.
    """
    length = len(data)
    half = (length + 1) // 2
    shared = length % 2
    left, right = bytearray(data[:half]), bytearray(data[length - half :])
    if shared:
        left[-1] &= 0xF0
        right[0] &= 0x0F
    mask = partial(_mask, encrypt, length)
    for number in rounds:
        if number % 2:
            change = mask(number, left)
            if shared:
                change[0] &= 0x0F
            right = _xor(right, change)
        else:
            change = mask(number, right)
            if shared:
                change[-1] &= 0xF0
            left = _xor(left, change)
    if shared:
        return bytes(left[:-1]) + bytes([left[-1] | right[0]]) + bytes(right[1:])
    return bytes(left + right)


def _mask(encrypt: Cipher, length: int, number: int, half: bytearray) -> bytearray:
    """What a round changes the other half by."""
    block = bytes(half).ljust(_BLOCK - 2, b"\0") + bytes([length, number])
    return bytearray(encrypt(block)[: len(half)])


def _xor(a: bytearray, b: bytearray) -> bytearray:
    return bytearray(x ^ y for x, y in zip(a, b, strict=True))


__all__ = [
    "KEY_LENGTH",
    "LEAST_NONCE",
    "MAX_TOGETHER",
    "UNROUTABLE",
    "QuicLb",
    "QuicLbConfig",
    "QuicLbReader",
    "unroutable",
]
