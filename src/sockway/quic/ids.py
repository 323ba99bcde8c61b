"""What a worker needs to mint connection IDs, and where it has that from: the environment."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from sockway.errors import ConfigError
from sockway.wire.host_id import KEY_LENGTH, MAX_LENGTH, MIN_LENGTH, WORKERS, HostIds, Owner

if TYPE_CHECKING:
    from collections.abc import Mapping

GENERATION: Final = "SOCKWAY_GENERATION"
WORKER: Final = "SOCKWAY_WORKER"
ID_KEY: Final = "SOCKWAY_ID_KEY"
ID_LENGTH: Final = "SOCKWAY_ID_LENGTH"

_LAST_GENERATION: Final = 2**32 - 1
_KEY: Final = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_LENGTH}}}")
_HINT: Final = "run the server by `sockway serve`, which sets it for each worker"


class ConnectionIds:
    """Mints the connection IDs of one worker.

    IDs are random where they are not the host's, and the host's five octets look random. Of an
    ID of 8 octets that leaves two: enough for some dozens of live IDs in a worker, and a QUIC
    server keeps up to eight for each connection. Use 12 octets or more (16 is the default),
    or prefixes that don't repeat.

    Args:
        codec: the service's key and length.
        generation: number of the worker's generation.
        worker: its index in there.

    """

    def __init__(self, codec: HostIds, generation: int, worker: int) -> None:
        """Keep who mints, and by what key."""
        self._codec = codec
        self.generation = generation
        self.worker = worker

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ConnectionIds:
        """Take what `sockway serve` sets for each worker.

        Reads SOCKWAY_GENERATION, SOCKWAY_WORKER, SOCKWAY_ID_KEY (32 hexadecimal digits) and
        SOCKWAY_ID_LENGTH (octets).

        Args:
            environment: where to look, os.environ if not given.

        Raises:
            ConfigError: a variable is missing or can't be; it names the variable.

        """
        found = os.environ if environment is None else environment
        key = _variable(found, ID_KEY)
        if not _KEY.fullmatch(key):
            # The key is a secret of the service: it is not shown.
            raise ConfigError(f"{ID_KEY} is not {2 * KEY_LENGTH} hexadecimal digits", hint=_HINT)
        return cls(
            HostIds(bytes.fromhex(key), _number(found, ID_LENGTH, MIN_LENGTH, MAX_LENGTH)),
            _number(found, GENERATION, 1, _LAST_GENERATION),
            _number(found, WORKER, 0, WORKERS - 1),
        )

    @property
    def length(self) -> int:
        """Octets of an ID; a server needs to know it to read short headers."""
        return self._codec.length

    @property
    def prefix_length(self) -> int:
        """Octets of the prefix that `mint` takes."""
        return self._codec.prefix_length

    def mint(self, prefix: bytes | None = None) -> bytes:
        """Make a new ID that leads to this worker.

        Args:
            prefix: what it starts with, `prefix_length` octets not used before; random if not
                given.

        Raises:
            ValueError: a prefix of another length.

        """
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


def _variable(environment: Mapping[str, str], name: str) -> str:
    """A variable that has to be there."""
    try:
        return environment[name]
    except KeyError:
        raise ConfigError(f"{name} is not in the environment", hint=_HINT) from None


def _number(environment: Mapping[str, str], name: str, lowest: int, highest: int) -> int:
    """A variable that is a number in a range."""
    word = _variable(environment, name)
    number = int(word) if re.fullmatch(r"[0-9]{1,10}", word) else -1
    if not lowest <= number <= highest:
        raise ConfigError(f"{name}={word} is not a number from {lowest} to {highest}", hint=_HINT)
    return number
