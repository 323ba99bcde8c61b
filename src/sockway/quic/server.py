"""The part of a connection ID that balancers read: which server, by which configuration."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from sockway.errors import ConfigError
from sockway.quic.environment import number, variable
from sockway.quic.nonces import LEAST_ENCRYPTED, Nonces
from sockway.wire.host_id import HOST_LENGTH, MAX_LENGTH
from sockway.wire.quic_lb import KEY_LENGTH, QuicLb, QuicLbConfig, unroutable

if TYPE_CHECKING:
    from collections.abc import Mapping

ROTATION: Final = "SOCKWAY_QUIC_LB_ROTATION"
SERVER_ID: Final = "SOCKWAY_QUIC_LB_SERVER_ID"
NONCE_LENGTH: Final = "SOCKWAY_QUIC_LB_NONCE_LENGTH"
KEY: Final = "SOCKWAY_QUIC_LB_KEY"
VARIABLES: Final = (ROTATION, SERVER_ID, NONCE_LENGTH, KEY)

MOST_TOGETHER: Final = MAX_LENGTH - 1 - HOST_LENGTH
"""Octets that server ID and nonce can have together where the host's octets follow."""

TOO_SHORT: Final = (
    f"with a key use {LEAST_ENCRYPTED} or more, or two workers could mint the same; a new length "
    f"needs a new rotation, on balancers first"
)
"""What to do about a nonce that is."""


class ServerIds:
    """Mints what connection IDs of one server start with (draft-ietf-quic-load-balancers).

    A nonce is random where IDs are in clear, for it must not tell which of them belong together.
    Encrypted, it must not come twice under one key: it counts, in each process from a random number
    on, and has 7 octets or more so that the numbers of two processes hardly ever meet. When all
    have been used, IDs say that no balancer reads them, until there is another configuration.

    Args:
        config: as the balancers have it.
        server_id: this server's number.

    Raises:
        ConfigError: the number has more octets than the configuration's server IDs, or there is
            no room for the host's octets behind server ID and nonce, or the nonce is too short for
            encrypted IDs.

    """

    def __init__(self, config: QuicLbConfig, server_id: int) -> None:
        """Check that it fits, and make the key ready."""
        octets = config.server_id_length
        if not 0 <= server_id < 1 << 8 * octets:
            raise ConfigError(
                f"server_id is {server_id}",
                hint=f"server_id_length={octets}: it can be 0 to {(1 << 8 * octets) - 1}",
            )
        if config.together > MOST_TOGETHER:
            raise ConfigError(
                f"server_id_length + nonce_length is {config.together}",
                hint=f"it can be {MOST_TOGETHER} at most: {HOST_LENGTH} octets of the host follow, "
                f"and an ID has {MAX_LENGTH}",
            )
        if config.key is not None and config.nonce_length < LEAST_ENCRYPTED:
            raise ConfigError(
                f"nonce_length is {config.nonce_length}, too short for encrypted IDs",
                hint=TOO_SHORT,
            )
        self.config = config
        self.server_id = server_id
        self._codec = QuicLb(config)
        self._octets = server_id.to_bytes(octets, "big")
        self._nonces = Nonces(config.nonce_length)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ServerIds | None:
        """Take what `sockway serve` sets for workers where `quic_lb` is configured; else None.

        Reads SOCKWAY_QUIC_LB_ROTATION, SOCKWAY_QUIC_LB_SERVER_ID (hexadecimal, two digits an
        octet), SOCKWAY_QUIC_LB_NONCE_LENGTH and, where IDs are encrypted, SOCKWAY_QUIC_LB_KEY (32
        hexadecimal digits).

        Raises:
            ConfigError: a variable is missing or can't be; it names the variable.

        """
        found = os.environ if environment is None else environment
        if not any(name in found for name in VARIABLES):
            return None
        server_id = variable(found, SERVER_ID)
        if not re.fullmatch(r"(?:[0-9a-fA-F]{2}){1,13}", server_id):
            raise ConfigError(
                f"{SERVER_ID}={server_id} is not 2 to 26 hexadecimal digits",
                hint="two for each octet of a server ID",
            )
        key = found.get(KEY)
        if key is not None and not re.fullmatch(rf"[0-9a-fA-F]{{{2 * KEY_LENGTH}}}", key):
            raise ConfigError(
                f"{KEY} is not {2 * KEY_LENGTH} hexadecimal digits",
                hint="make one with: openssl rand -hex 16",
            )
        config = QuicLbConfig(
            rotation=number(found, ROTATION, 0, 6),
            server_id_length=len(server_id) // 2,
            nonce_length=number(found, NONCE_LENGTH, 4, 13),
            key=bytes.fromhex(key) if key is not None else None,
        )
        return cls(config, int(server_id, 16))

    @property
    def environment(self) -> dict[str, str]:
        """What `from_environment` reads."""
        config = self.config
        found = {
            ROTATION: str(config.rotation),
            SERVER_ID: self._octets.hex(),
            NONCE_LENGTH: str(config.nonce_length),
        }
        return found if config.key is None else found | {KEY: config.key.hex()}

    @property
    def least_length(self) -> int:
        """Octets of an ID that has room for this and the host's octets."""
        return self.config.length + HOST_LENGTH

    def prefix(self, length: int) -> bytes:
        """What a new ID of so many octets starts with: all but the host's octets.

        Between the nonce and the host's octets, what is left is random.

        Raises:
            ValueError: the ID is shorter than `least_length`, or longer than 20 octets.

        """
        if length < self.least_length:
            message = f"an ID has {self.least_length} octets or more here, not {length}"
            raise ValueError(message)
        config = self.config
        nonce = os.urandom(config.nonce_length) if config.key is None else self._nonces.take()
        if nonce is None:
            return unroutable(length)[:-HOST_LENGTH]
        own = os.urandom(length - config.length)
        return self._codec.encode(self._octets, nonce, own)[:-HOST_LENGTH]


__all__ = ["MOST_TOGETHER", "TOO_SHORT", "VARIABLES", "ServerIds"]
