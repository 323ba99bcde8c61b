"""What a health check is: the table ``[pool.NAME.health]`` of a configuration."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Kind = Literal["tcp", "http", "https", "udp", "quic"]
_PATH = re.compile(r"/[\x21-\x7e]*")
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
PROTOCOL = {"tcp": "tcp", "http": "tcp", "https": "tcp", "udp": "udp", "quic": "udp"}


class HealthSpec(BaseModel):
    """How backends of a pool are checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Kind
    """`tcp`: a connection comes about; `http`, `https`: a request is answered; `udp`: a datagram
    is; `quic`: the server speaks QUIC (it answers an unknown version, RFC 9000, section 6)."""
    port: int | None = Field(default=None, gt=0, le=65_535)
    """Of the VIP; only needed where the pool's VIPs have any port."""
    path: str = "/"
    """Of an HTTP request."""
    host: str | None = None
    """Host of an HTTP request, and name that TLS asks for; the VIP's address if not given."""
    status: int = Field(default=200, ge=100, le=599)
    """Of the answer to an HTTP request."""
    verify: bool = False
    """Whether the certificate must be good for `host`."""
    send: str = ""
    """Text of the datagram of a UDP check."""
    expect: str | None = None
    """Regular expression that a UDP answer, or the body of an HTTP answer, must match."""
    interval: float = Field(default=2.0, ge=0.05, le=3600)
    """Seconds from one check of a backend to the next; varied by a tenth."""
    timeout: float = Field(default=1.0, gt=0, le=60)
    """Seconds that a check may take."""
    rise: int = Field(default=2, ge=1, le=100)
    """Successes in a row until a backend that failed takes part again."""
    fall: int = Field(default=3, ge=1, le=100)
    """Failures in a row until a backend is taken out."""
    max_down: float = Field(default=0.5, ge=0, le=1)
    """Largest share of the pool that is taken out; those that fail beyond it stay in."""
    on_failure: Literal["move", "drain"] = "move"
    """`move`: connections of a backend that fails go to others, where they are reset, so that
    clients try again; `drain`: it keeps them, and gets no new ones."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not _PATH.fullmatch(value):
            message = "it begins with / and has no spaces; write other letters than ASCII as %C3%A4"
            raise ValueError(message)
        return value

    @field_validator("host")
    @classmethod
    def _host(cls, value: str | None) -> str | None:
        if value is not None and not _HOST.fullmatch(value):
            try:
                ip_address(value)
            except ValueError:
                message = "it is a name of ASCII letters, digits, '-' and '.', or an address"
                raise ValueError(message) from None
        return value

    @field_validator("expect")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                message = f"it is no regular expression: {error}"
                raise ValueError(message) from None
        return value

    @property
    def protocol(self) -> str:
        """`tcp` or `udp`: which VIPs of the pool can be asked."""
        return PROTOCOL[self.type]


__all__ = ["HealthSpec", "Kind"]
