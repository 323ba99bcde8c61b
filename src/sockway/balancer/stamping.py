"""Stamps on TCP: hosts whose connections carry their server's ID.

A sock_ops program on a cgroup writes the option for the sockets of its processes: servers tell
their ID when a connection comes about, clients put it on every packet from then on (see
`bpf/stamp.bpf.c`). Everything is pinned; a change gets a new program over the connections' state.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sockway.balancer import stamplisteners
from sockway.balancer.config import parse, text_of
from sockway.balancer.layout import swapped, words
from sockway.balancer.profile import Profile, with_profile
from sockway.balancer.spec import check_name
from sockway.balancer.state import DEFAULT_ROOT, ROOT_VARIABLE
from sockway.errors import ConfigError, KernelError, NotFoundError
from sockway.kernel import BpfObject, Link, Map, ObjectLayout, bpffs

LAYOUT: Final = ObjectLayout("stamp")
PREFIX: Final = "@stamp-"
_KEPT: Final = ("states", "counters")
"""Maps that outlive a change: what connections know."""
_MAPPED_BITS: Final = 96
Port = int


class StampingSpec(BaseModel):
    """What is stamped on this host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "main"
    cgroup: Path = Path("/sys/fs/cgroup")
    """Whose processes' sockets: a directory of a hierarchy of version 2."""
    server_id: int = Field(default=0, ge=0, lt=1 << 24)
    """This host's, as the balancers have it; 0: it is no server, or the registry says."""
    backend: str | None = None
    """This host's name in the registry of server IDs, which then says `server_id`."""
    registry: Path | None = None
    """The registry's file; where `sockway ids` looks if not given."""
    server_ports: list[Port] = Field(default_factory=list, max_length=1024)
    """Ports of this host whose connections are told the ID."""
    client_ports: list[Port] = Field(default_factory=list, max_length=1024)
    """Ports of others: connections of this host to them carry what they are told."""
    peers: list[IPv4Network | IPv6Network] = Field(min_length=1, max_length=4096)
    """Whom options are written to; nobody else ever gets one."""
    server_kind: int = Field(default=0xB6, ge=2, le=254)
    """Of the option that servers write."""
    client_kind: int = Field(default=0xB7, ge=2, le=254)
    """Of the option that clients write, which balancers read."""
    server_experiment: int | None = Field(default=None, gt=0, le=0xFFFF)
    """Number of the experiment, with kind 253 or 254 (RFC 6994)."""
    client_experiment: int | None = Field(default=None, gt=0, le=0xFFFF)
    byte_order: Literal["big", "little"] = "big"
    """Of the ID's octets."""
    profile: Profile = None
    """`katran`: kinds and byte order as in fleets behind Katran."""

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_profile(cls, data: Any) -> Any:
        return with_profile(data, {"server_kind": 0xB6, "client_kind": 0xB7})

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @model_validator(mode="after")
    def _one_id(self) -> Self:
        if self.backend is not None and self.server_id:
            message = "server_id and backend both say the server ID: leave one out"
            raise ValueError(message)
        if self.backend is None and self.registry is not None:
            message = "a registry wants backend, this host's name in it"
            raise ValueError(message)
        return self

    @field_validator("server_ports", "client_ports")
    @classmethod
    def _ports(cls, value: list[int]) -> list[int]:
        for port in value:
            if not 0 < port <= 0xFFFF:  # noqa: PLR2004
                message = f"{port} is no port: 1 to 65535"
                raise ValueError(message)
        return value

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The configuration in a TOML file.

        Raises:
            ConfigError: it names the file, the line, the field and what is allowed.

        """
        return parse(cls, text_of(path), str(path))


class Stamping:
    """The stamps of one cgroup of this host."""

    def __init__(self, name: str, directory: Path) -> None:
        """Take what is there; see `up` and `existing`."""
        self.name = name
        self._directory = directory

    @classmethod
    def up(cls, spec: StampingSpec, *, root: Path | str | None = None) -> Self:
        """Stamp, or change what is stamped; connections keep what they know.

        Raises:
            ConfigError: the cgroup is none of version 2, or not there.
            KernelError: the kernel refused the program; nothing has changed.

        """
        if spec.backend is not None and not spec.server_id:
            raise ConfigError(
                f"the server ID of {spec.backend} is to be taken from the registry, and was not",
                hint="sockway.fleet.telling.stamp_up(spec) takes it",
            )
        made = cls(spec.name, _place(spec.name, root))
        bpffs.ensure_mounted(made._directory.parent)
        was_there = made._directory.is_dir()
        made._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with bpffs.lock(made._directory):
                made._load(spec)
        except BaseException:
            if not was_there:
                shutil.rmtree(made._directory, ignore_errors=True)
            raise
        return made

    @classmethod
    def existing(cls, name: str = "main", *, root: Path | str | None = None) -> Self:
        """What is stamped by this name.

        Raises:
            NotFoundError: nothing is.

        """
        made = cls(name, _place(name, root))
        if not (made._directory / "link").exists():
            raise NotFoundError(
                f"nothing is stamped by the name {name!r}", hint="`sockway stamp up FILE`"
            )
        return made

    def down(self) -> None:
        """Stop: connections go on without stamps."""
        # Its cgroup may be gone.
        with (
            contextlib.suppress(NotFoundError, KernelError),
            Link.from_pin(self._directory / "link") as link,
        ):
            link.detach()
        shutil.rmtree(self._directory, ignore_errors=True)

    def counters(self) -> dict[str, int]:
        """What happened, by `enum stamp_count`."""
        names = LAYOUT.names("stamp_count", "STAMP_COUNTS")
        kind = LAYOUT.struct("stamp_counters")
        with Map.from_pin(self._directory / "counters", value_type=kind) as counters:
            rows = [cpu.count for cpu in counters[0]]
        return {
            name.removeprefix("stamp_"): sum(int(row[index]) for row in rows)
            for index, name in enumerate(names)
        }

    def id_of(self, sock: socket.socket) -> int | None:
        """What a connected client's socket was told; None: nothing yet."""
        kind = LAYOUT.struct("stamp_state")
        with (
            Map.from_pin(self._directory / "states", value_type=kind) as states,
            contextlib.suppress(KeyError, NotFoundError),
        ):
            return int(states[sock.fileno()].id) or None
        return None

    def _load(self, spec: StampingSpec) -> None:
        with contextlib.ExitStack() as opened:
            made = opened.enter_context(BpfObject.open(LAYOUT.source, name="stamp"))
            made.rodata["config"] = _config(spec)
            for name in _KEPT:
                if (self._directory / name).exists():
                    kept = opened.enter_context(Map.from_pin(self._directory / name))
                    made.maps[name].reuse(kept)
            made.load()
            _fill(made, spec)
            self._attach(made, spec.cgroup)
            with made.map("ports") as ports:
                stamplisteners.wake(ports)
            for name in _KEPT:
                if not (self._directory / name).exists():
                    made.map(name).pin(self._directory / name)

    def _attach(self, made: BpfObject, cgroup: Path) -> None:
        pin = self._directory / "link"
        with made.program("stamp") as program:
            if pin.exists():
                with Link.from_pin(pin) as link, contextlib.suppress(KernelError):
                    link.update(program)
                    return
                pin.unlink()  # its cgroup is gone
            try:
                fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                raise ConfigError(f"can't open cgroup {cgroup}: {error.strerror}") from None
            try:
                with program.attach_cgroup(fd) as link:
                    link.pin(pin)
            finally:
                os.close(fd)


def _config(spec: StampingSpec) -> Any:
    config = LAYOUT.struct("stamp_config")()
    config.server_kind, config.client_kind = spec.server_kind, spec.client_kind
    config.little_endian = spec.byte_order == "little"
    config.server_experiment = swapped(spec.server_experiment or 0)
    config.client_experiment = swapped(spec.client_experiment or 0)
    # What connections were checked by under another configuration counts no longer.
    config.epoch = secrets.randbits(32)
    config.abi = LAYOUT.constant("stamp_limit", "STAMP_ABI")
    return config


def _fill(made: BpfObject, spec: StampingSpec) -> None:
    made.map(".data.settings").mmap(LAYOUT.struct("stamp_settings")).server_id = spec.server_id
    roles: dict[int, int] = {}
    for ports, role in ((spec.server_ports, "SERVER"), (spec.client_ports, "CLIENT")):
        for port in ports:
            roles[port] = roles.get(port, 0) | LAYOUT.constant("stamp_role", f"STAMP_{role}")
    for port, value in roles.items():
        made.map("ports")[port] = value
    kind = LAYOUT.struct("stamp_peer")
    for network in spec.peers:
        key = kind()
        key.length = network.prefixlen + (_MAPPED_BITS if isinstance(network, IPv4Network) else 0)
        key.address[:] = words(network.network_address)
        made.map("peers")[key] = 1


def _place(name: str, root: Path | str | None) -> Path:
    chosen = root if root is not None else os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT
    return Path(chosen) / f"{PREFIX}{name}"


__all__ = ["Stamping", "StampingSpec"]
