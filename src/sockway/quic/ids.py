"""What a worker needs to mint connection IDs, and where it has that from: the environment."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from sockway.errors import ConfigError
from sockway.quic.environment import HINT, number, variable
from sockway.quic.server import ServerIds
from sockway.wire.host_id import KEY_LENGTH, MAX_LENGTH, MIN_LENGTH, WORKERS, HostIds, Owner

if TYPE_CHECKING:
    from collections.abc import Mapping

GENERATION: Final = "SOCKWAY_GENERATION"
WORKER: Final = "SOCKWAY_WORKER"
ID_KEY: Final = "SOCKWAY_ID_KEY"
ID_LENGTH: Final = "SOCKWAY_ID_LENGTH"

_LAST_GENERATION: Final = 2**32 - 1
_KEY: Final = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_LENGTH}}}")


class ConnectionIds:
    """Mints the connection IDs of one worker.

    IDs are random where they are not the host's, and the host's five octets look random. Of an
    ID of 8 octets that leaves two: enough for some dozens of live IDs in a worker, and a QUIC
    server keeps up to eight for each connection. Use 12 octets or more (16 is the default),
    or prefixes that don't repeat.

    With a server's part, IDs start as balancers read them (draft-ietf-quic-load-balancers):
    first octet, server ID, nonce; then octets by chance, as many as are left; then the host's.

    Args:
        codec: the service's key and length.
        generation: number of the worker's generation.
        worker: its index in there.
        server: what tells balancers the server; without it, IDs say that no balancer reads them.

    Raises:
        ConfigError: IDs of this length have no room for the server's part.

    """

    def __init__(
        self, codec: HostIds, generation: int, worker: int, server: ServerIds | None = None
    ) -> None:
        """Keep who mints, and by what key."""
        self._codec = codec
        self.generation = generation
        self.worker = worker
        self._server: ServerIds | None = None
        self.use(server)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ConnectionIds:
        """Take what `sockway serve` sets for each worker.

        Reads SOCKWAY_GENERATION, SOCKWAY_WORKER, SOCKWAY_ID_KEY (32 hexadecimal digits) and
        SOCKWAY_ID_LENGTH (octets); where balancers read IDs, what `ServerIds.from_environment`
        reads, too.

        Args:
            environment: where to look, os.environ if not given.

        Raises:
            ConfigError: a variable is missing or can't be; it names the variable.

        """
        found = os.environ if environment is None else environment
        key = variable(found, ID_KEY)
        if not _KEY.fullmatch(key):
            # The key is a secret of the service: it is not shown.
            raise ConfigError(f"{ID_KEY} is not {2 * KEY_LENGTH} hexadecimal digits", hint=HINT)
        return cls(
            HostIds(bytes.fromhex(key), number(found, ID_LENGTH, MIN_LENGTH, MAX_LENGTH)),
            number(found, GENERATION, 1, _LAST_GENERATION),
            number(found, WORKER, 0, WORKERS - 1),
            ServerIds.from_environment(found),
        )

    @property
    def length(self) -> int:
        """Octets of an ID; a server needs to know it to read short headers."""
        return self._codec.length

    @property
    def prefix_length(self) -> int:
        """Octets of the prefix that `mint` takes."""
        return self._codec.prefix_length

    @property
    def server(self) -> ServerIds | None:
        """What tells balancers the server."""
        return self._server

    def use(self, server: ServerIds | None) -> None:
        """From now on, mint by another configuration of the balancers.

        IDs that are out already stay as they are; balancers have to read both until the last of
        them is gone.

        Raises:
            ConfigError: IDs of this length have no room for it.

        """
        if server is not None and server.least_length > self.length:
            raise ConfigError(
                f"connection IDs of {self.length} octets have no room for a server ID of "
                f"{server.config.server_id_length} and a nonce of {server.config.nonce_length}",
                hint=f"give the VIP id_length={server.least_length} or more",
            )
        self._server = server

    def mint(self, prefix: bytes | None = None) -> bytes:
        """Make a new ID that leads to this worker.

        Args:
            prefix: what it starts with, `prefix_length` octets not used before; the server's
                part, or random octets, if not given.

        Raises:
            ValueError: a prefix of another length.

        """
        if prefix is None and self._server is not None:
            prefix = self._server.prefix(self.length)
        return self._codec.mint(self.generation, self.worker, prefix)

    def read(self, connection_id: bytes) -> Owner | None:
        """Tell which worker of the service minted an ID; None if none did."""
        return self._codec.read(connection_id)


def is_worker(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process is a worker that Sockway gave a key for connection IDs.

    Args:
        environment: where to look, os.environ if not given.

    """
    return ID_KEY in (os.environ if environment is None else environment)
