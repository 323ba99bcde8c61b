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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from sockway.balancer import stamplisteners
from sockway.balancer.layout import swapped, words
from sockway.balancer.stamped import Stamped, counts, read
from sockway.balancer.stampspec import LAYOUT, StampingSpec, prefixes
from sockway.balancer.state import DEFAULT_ROOT, ROOT_VARIABLE
from sockway.errors import ConfigError, IncompatibleError, NotFoundError
from sockway.kernel import BpfObject, Link, Map, bpffs, cgroup
from sockway.kernel.pins import permitted

PREFIX: Final = "@stamp-"
_KEPT: Final = ("states", "counters")
"""Maps that outlive a change: what connections know."""
_MADE_ANEW: Final = {
    ".rodata": "config", ".data.settings": "settings", "ports": "ports", "peers": "peers",
}  # fmt: skip
"""Maps that come with each program, by their name in the object, and what their pins are called."""
_NEXT: Final = "next-"
"""Before the names of pins that are about to take another's place."""


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
            IncompatibleError: what is there was made by another version.
            BusyError: another process is changing it.
            KernelError: the kernel refused the program; nothing has changed.

        """
        if spec.backend is not None and not spec.server_id:
            raise ConfigError(
                f"the server ID of {spec.backend} is to be taken from the registry, and was not",
                hint="sockway.fleet.telling.stamp_up(spec) takes it",
            )
        made = cls(spec.name, _place(spec.name, root))
        directory = made._directory
        with permitted(directory):
            bpffs.ensure_mounted(directory.parent)
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only who holds the lock knows whose the directory is, and may take it away.
            with bpffs.lock(directory):
                was_up = made._link.exists()
                try:
                    made._load(spec)
                except BaseException:
                    if not was_up:
                        shutil.rmtree(directory, ignore_errors=True)
                    raise
        return made

    @classmethod
    def existing(cls, name: str = "main", *, root: Path | str | None = None) -> Self:
        """What is stamped by this name.

        Raises:
            NotFoundError: nothing is.
            PermissionDenied: this process may not look.

        """
        made = cls(name, _place(name, root))
        with permitted(made._directory):
            there = made._link.exists()
        if not there:
            raise NotFoundError(
                f"nothing is stamped by the name {name!r}", hint="`sockway stamp up FILE`"
            )
        return made

    @classmethod
    def names(cls, *, root: Path | str | None = None) -> list[str]:
        """All names that something is stamped by.

        Raises:
            PermissionDenied: this process may not look.

        """
        place = _root(root)
        with permitted(place):
            if not place.is_dir():
                return []
            found = [each for each in place.iterdir() if each.name.startswith(PREFIX)]
            return sorted(
                each.name.removeprefix(PREFIX) for each in found if (each / "link").exists()
            )

    def down(self) -> None:
        """Stop: connections go on without stamps.

        Raises:
            BusyError: another process is changing it.
            PermissionDenied: this process may not.

        """
        with (
            permitted(self._directory),
            contextlib.suppress(NotFoundError),  # somebody else was faster
            bpffs.lock(self._directory),
        ):
            with contextlib.suppress(NotFoundError), Link.from_pin(self._link) as link:
                link.detach()
            shutil.rmtree(self._directory)

    def counters(self) -> dict[str, int]:
        """What happened, by `enum stamp_count`."""
        kind = LAYOUT.struct("stamp_counters")
        with Map.from_pin(self._directory / "counters", value_type=kind) as counters:
            return counts(counters)

    def stamped(self) -> Stamped:
        """What is stamped, as the program has it.

        Raises:
            IncompatibleError: it was made by another version.

        """
        self._check()
        with contextlib.ExitStack() as opened:
            kinds = {"peers": LAYOUT.struct("stamp_peer")}
            pins = {
                name: opened.enter_context(
                    Map.from_pin(self._directory / name, key_type=kinds.get(name))
                )
                for name in _MADE_ANEW.values()
            }
            link = opened.enter_context(Link.from_pin(self._link))
            return read(self.name, link, pins)

    def id_of(self, sock: socket.socket) -> int | None:
        """What a connected client's socket was told; None: nothing yet."""
        kind = LAYOUT.struct("stamp_state")
        with Map.from_pin(self._directory / "states", value_type=kind) as states:
            return told(states, sock)

    @property
    def _link(self) -> Path:
        return self._directory / "link"

    def _check(self) -> None:
        """That what is pinned was made by this version: else its octets mean something else."""
        found = None
        with contextlib.suppress(NotFoundError), Map.from_pin(self._directory / "config") as config:
            found = int(config.read_variable("config", LAYOUT.types).abi)
        known = LAYOUT.constant("stamp_limit", "STAMP_ABI")
        if found != known:
            raise IncompatibleError(
                f"the stamps {self.name!r} were made by another version of Sockway "
                f"(layout {found or 'unknown'}, this one has {known})",
                hint=f"`sockway stamp down --name {self.name}`, then up: connections of before go "
                "on without",
            )

    def _load(self, spec: StampingSpec) -> None:
        """Load, fill, attach: in this order, so that what fails has changed nothing."""
        was_up = self._link.exists()
        for left in self._directory.iterdir():
            if left.name.startswith(_NEXT) or not was_up:
                left.unlink()  # of a process that died
        with contextlib.ExitStack() as opened:
            fd, number = opened.enter_context(cgroup.opened(spec.cgroup or cgroup.mount()))
            kept = {}
            if was_up:
                self._check()
                for name in _KEPT:
                    kept[name] = opened.enter_context(Map.from_pin(self._directory / name))
            made = opened.enter_context(loaded(spec, kept))
            for name, pin in _MADE_ANEW.items():
                made.map(name).pin(self._next(pin))
            if not was_up:
                for name in _KEPT:
                    made.map(name).pin(self._directory / name)
            self._attach(made, fd, number)
            for pin in (*_MADE_ANEW.values(), "link"):
                with contextlib.suppress(FileNotFoundError):  # the link is mostly the old one
                    self._next(pin).replace(self._directory / pin)
            with made.map("ports") as ports:
                stamplisteners.wake(ports)

    def _attach(self, made: BpfObject, fd: int, number: int) -> None:
        """Exchange the program in one step, or attach it to another cgroup and leave the old."""
        with made.program("stamp") as program, contextlib.ExitStack() as opened:
            old = None
            if self._link.exists():
                old = opened.enter_context(Link.from_pin(self._link))
                if old.cgroup_id() == number:
                    old.update(program)
                    return
            with program.attach_cgroup(fd) as link:
                link.pin(self._next("link"))
            if old is not None:
                old.detach()

    def _next(self, pin: str) -> Path:
        return self._directory / f"{_NEXT}{pin}"


@contextlib.contextmanager
def loaded(spec: StampingSpec, kept: dict[str, Map] | None = None) -> Iterator[BpfObject]:
    """The program, loaded and filled, and attached to nothing.

    Args:
        spec: what it stamps.
        kept: maps that it takes over, by their name.

    """
    with BpfObject.open(LAYOUT.source, name="stamp") as made:
        made.rodata["config"] = _config(spec)
        for name, held in (kept or {}).items():
            made.maps[name].reuse(held)
        made.load()
        _fill(made, spec)
        yield made


def told(states: Map, sock: socket.socket) -> int | None:
    """What a socket was told, by the map of states."""
    with contextlib.suppress(KeyError, NotFoundError):
        return int(states[sock.fileno()].id) or None
    return None


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
    for network in prefixes(spec.peers):
        key = kind()
        key.length = network.prefixlen
        key.address[:] = words(network.network_address)
        made.map("peers")[key] = 1


def _root(root: Path | str | None) -> Path:
    return Path(root if root is not None else os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def _place(name: str, root: Path | str | None) -> Path:
    return _root(root) / f"{PREFIX}{name}"


__all__ = ["Stamped", "Stamping", "StampingSpec"]
