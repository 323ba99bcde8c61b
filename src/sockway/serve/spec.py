"""What `sockway serve` is asked to run: one model for the command line and for TOML files."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sockway.serve.quic_lb import QuicLbSpec
from sockway.sockets.service import DEFAULT_FLOWS
from sockway.sockets.state import FLOW_TIMEOUT, ID_TIMEOUT
from sockway.wire.addresses import DEFAULT_ID_LENGTH, FlowMode, Vip
from sockway.wire.host_id import HOST_LENGTH

Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


class ServeSpec(BaseModel):
    """How a service is run and released. Times are in seconds.

    Made by `sockway.serve.config`, which turns what is wrong with it into one clear `ConfigError`.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    command: list[str] = Field(min_length=1)
    """The program and its arguments, with placeholders."""
    listen: list[str] = Field(min_length=1)
    """VIPs, as `tcp://[::]:8080`; the first is `{fd}`."""
    name: str = Field(default="", max_length=63)
    """Of the service; the program's name unless given."""
    workers: int = Field(default=1, ge=1, le=256)
    """Processes, each with its own socket for each VIP."""
    env: dict[str, str] = Field(default_factory=dict)
    """More environment for the workers; placeholders are filled in here too."""
    directory: Path | None = Field(default=None, strict=False)
    """Working directory of the workers; the supervisor's unless given."""
    user: str | None = None
    """USER or USER:GROUP that the workers run as, by name or number."""

    takeover: bool = False
    """Release by socket takeover, in user space, and not by the router."""

    quic_lb: QuicLbSpec | None = None
    """How connection IDs name this server to balancers; not at all unless given."""

    ready: str = "auto"
    """How a worker shows that it is ready; see `ready_kind`."""
    ready_timeout: Seconds = 30.0
    """A worker that is not ready by then fails the release."""
    ready_delay: Seconds = 1.0
    """How long a worker must live where nothing better tells that it is ready (`exec`)."""

    hold: Seconds = 0.0
    """How long the old generation stays as it is after a publish, as a way back."""
    settle_timeout: Seconds = 5.0
    """Longest wait for the old accept queues to run empty and be read, before anything is told."""
    linger: Seconds = 5.0
    """Longest wait for clients to leave the old generation by themselves, before it is stopped."""
    drain_timeout: Seconds = 30.0
    """How long a worker has from the stop signal on; then it is killed."""
    stop_signal: str = "TERM"
    """What tells a worker to finish: a signal's name; nginx wants QUIT."""

    backlog: int = Field(default=4096, ge=1, le=2**31 - 1)
    """Longest accept queue of a listener, in connections."""
    flows: int = Field(default=DEFAULT_FLOWS, ge=0, le=2**26)
    """UDP flows that are remembered without loss."""
    flow_timeout: Annotated[float, Field(gt=0, le=86_400)] = FLOW_TIMEOUT
    """A UDP flow that is silent for so long is forgotten."""
    id_timeout: Annotated[float, Field(gt=0, le=86_400)] = ID_TIMEOUT
    """The same for a connection that is known by its first packets' ID only."""

    restart_delay: Annotated[float, Field(gt=0, le=60)] = 0.5
    """First pause before a dead worker is started again; it doubles each time."""
    restart_delay_most: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Longest such pause."""
    log_prefix: bool = True
    """Whether each line of a worker's output is shown behind its generation and number."""

    @model_validator(mode="before")
    @classmethod
    def _name_by_command(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name"):
            command = data.get("command")
            if isinstance(command, list) and command and isinstance(command[0], str):
                word = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(command[0]).name).strip("-_")
                return {**data, "name": word[:63] or "service"}
        return data

    @cached_property
    def vips(self) -> tuple[Vip, ...]:
        """The VIPs that `listen` names.

        Where balancers read connection IDs, an `id_length` that is not given is long enough.
        """
        return tuple(self._vip(text) for text in self.listen)

    def _vip(self, text: str) -> Vip:
        vip = Vip.parse(text)
        if vip.flow != FlowMode.QUIC or "id_length=" in text:
            return vip
        return replace(vip, id_length=max(DEFAULT_ID_LENGTH, self.least_id_length))

    @property
    def least_id_length(self) -> int:
        """Octets of a connection ID that has room for what balancers read; 0: they read nothing."""
        return 0 if self.quic_lb is None else 1 + self.quic_lb.together + HOST_LENGTH

    @property
    def ready_kind(self) -> tuple[str, str]:
        """The kind of `ready`, and what follows its colon.

        `auto`: READY=1 comes (sd_notify), or a connection to the first TCP VIP is accepted; without
        a TCP VIP, READY=1 or `exec`. `notify`: READY=1. `tcp`: a connection is accepted.
        `http:PATH`: GET of the path answers 200 to 299. `log:REGEX`: a line of output matches.
        `exec`: it lives for `ready_delay`.
        """
        kind, _, rest = self.ready.partition(":")
        return kind, rest

    @property
    def stop_number(self) -> signal.Signals:
        """The stop signal."""
        return signal.Signals[signal_name(self.stop_signal)]

    def changed(self, **fields: Any) -> Self:
        """A copy with other values, checked."""
        return type(self).model_validate({**self.model_dump(), **fields})


def signal_name(word: str) -> str:
    """`TERM`, `term` and `SIGTERM` as `SIGTERM`."""
    upper = word.upper()
    return upper if upper.startswith("SIG") else f"SIG{upper}"
