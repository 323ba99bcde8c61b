"""How a service's connection IDs name this server to balancers, as the configuration has it."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sockway.errors import ConfigError
from sockway.quic.nonces import LEAST_ENCRYPTED
from sockway.quic.server import MOST_TOGETHER, TOO_SHORT, ServerIds
from sockway.wire.quic_lb import KEY_LENGTH, LEAST_NONCE, UNROUTABLE, QuicLbConfig

_KEY: Final = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_LENGTH}}}")
_HOW: Final = f"it has {2 * KEY_LENGTH} hexadecimal digits; make one with: openssl rand -hex 16"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_LONGEST: Final = 4096
SERVER_ID: Final = "SOCKWAY_SERVER_ID"
"""The variable that has this server's ID where the configuration does not say it."""


class QuicLbSpec(BaseModel):
    """Connection IDs that balancers read: QUIC-LB (draft-ietf-quic-load-balancers).

    The balancers have the same `rotation`, lengths and key. Server ID and nonce are 14 octets
    together at most, for octets of the host follow.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    rotation: int = Field(ge=0, lt=UNROUTABLE)
    """Number of the configuration; another one for each change of the other fields."""
    server_id: int | None = Field(default=None, ge=1, lt=1 << 24)
    """This server's number, as the balancers have it; that of SOCKWAY_SERVER_ID in the supervisor's
    environment unless given (`sockway ids env`)."""
    server_id_length: int = Field(default=3, ge=1, le=7)
    """Octets of a server ID."""
    nonce_length: int | None = Field(default=None, ge=LEAST_NONCE, le=MOST_TOGETHER - 1)
    """Octets of a nonce; with a key it is needed and 7 or more, else 4 unless given."""
    key: str | None = Field(default=None, repr=False)
    """Key of AES-128, 32 hexadecimal digits; IDs are in clear if neither it nor `key_file` is
    given."""
    key_file: Path | None = Field(default=None, strict=False)
    """A file that holds the key, which nobody but its owner may read; read for each release, so it
    can't be a pipe."""

    @field_validator("key")
    @classmethod
    def _hexadecimal(cls, value: str | None) -> str | None:
        if value is not None and not _KEY.fullmatch(value):
            raise ValueError(_HOW)
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        message = ""
        has_key = self.key is not None or self.key_file is not None
        if self.key is not None and self.key_file is not None:
            message = "key and key_file both say the key: leave one out"
        elif has_key and self.nonce_length is None:
            message = "a key needs nonce_length, the same as the balancers have"
        elif has_key and (self.nonce_length or 0) < LEAST_ENCRYPTED:
            message = f"nonce_length = {self.nonce_length} is too short: {TOO_SHORT}"
        elif self.together > MOST_TOGETHER:
            message = (
                f"server_id_length and nonce_length are {self.together} together, and can be "
                f"{MOST_TOGETHER}: octets of the host follow, and an ID has 20"
            )
        elif (self.server_id or 0) >= 1 << 8 * self.server_id_length:
            message = (
                f"server_id = {self.server_id} has more than the {self.server_id_length} octets of "
                f"server_id_length"
            )
        if message:
            raise ValueError(message)
        return self

    @property
    def together(self) -> int:
        """Octets of server ID and nonce."""
        return self.server_id_length + (self.nonce_length or LEAST_NONCE)

    def with_key(self) -> Self:
        """With the key that is in `key_file`, as it is now.

        Raises:
            ConfigError: the file can't be read, others can read it, or there is no key in it.

        """
        if self.key_file is None:
            return self
        key = _read_key(self.key_file)
        return self.model_copy(update={"key": key, "key_file": None})

    def with_server_id(self) -> Self:
        """With the server ID of the environment, unless it has one.

        Raises:
            ConfigError: it is not there, or has more octets than `server_id_length`.

        """
        if self.server_id is not None:
            return self
        word = os.environ.get(SERVER_ID)
        if word is None:
            raise ConfigError(
                f"server_id is missing, and {SERVER_ID} is not in the environment",
                hint="give one of them; `sockway ids env NAME` gives the registry's",
            )
        most = (1 << 8 * min(3, self.server_id_length)) - 1
        number = int(word) if re.fullmatch(r"[0-9]{1,8}", word) else 0
        if not 1 <= number <= most:
            raise ConfigError(
                f"{SERVER_ID}={word} is not a number from 1 to {most}",
                hint="IDs of `sockway ids` are as small as `sockway ids configure --bits` says",
            )
        return self.model_copy(update={"server_id": number})

    def ids(self) -> ServerIds:
        """What mints them; key and server ID are there."""
        if self.server_id is None:
            raise ConfigError("server_id is missing")
        return ServerIds(
            QuicLbConfig(
                rotation=self.rotation,
                server_id_length=self.server_id_length,
                nonce_length=self.nonce_length or LEAST_NONCE,
                key=None if self.key is None else bytes.fromhex(self.key),
            ),
            self.server_id,
        )


def _open(path: str, flags: int) -> int:
    """Open without waiting: nobody may ever write to a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _read_key(path: Path) -> str:
    hint = f"write the key there: {_HOW}"
    try:
        with open(path, "rb", opener=_open) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{path} is no regular file", hint=hint)
            content = file.read(_LONGEST)
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}", hint=hint) from None
    except ValueError as error:  # a path that can't be
        raise ConfigError(f"can't read {str(path)!r}: {error}", hint=hint) from None
    if found.st_mode & _OTHERS or found.st_uid not in {0, os.geteuid()}:
        raise ConfigError(
            f"{path} (mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}) may be read "
            f"or changed by others",
            hint=f"chmod 600 {path}, and let the supervisor's user own it",
        )
    key = content.decode("ascii", "replace").strip()
    if not _KEY.fullmatch(key):
        raise ConfigError(f"what is in {path} is no key", hint=_HOW)
    return key


__all__ = ["QuicLbSpec"]
