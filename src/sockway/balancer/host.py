"""A machine as a backend: VIPs on its loopback, tunnels opened, and all of it undone again.

What is changed of the host is written down first, with what was there before, in a file that the
next process finds; so `down` restores it also after a crash of the process that set it up. Only
what is changed is written down, and only what was written down is undone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sockway.balancer import attach as attachments
from sockway.balancer.config import parse, text_of
from sockway.balancer.layout import IpAddress, address_of, swapped, words
from sockway.balancer.spec import check_name
from sockway.balancer.stampspec import StampingSpec
from sockway.balancer.state import DEFAULT_ROOT, ROOT_VARIABLE
from sockway.errors import ConfigError, NotFoundError, SockwayError
from sockway.kernel import BpfObject, Map, ObjectLayout, Program, bpffs, current_netns_cookie

LAYOUT: Final = ObjectLayout("decap")
PREFIX: Final = "@backend-"
RUNTIME_VARIABLE: Final = "SOCKWAY_RUNTIME"
DEFAULT_RUNTIME: Final = Path("/run/sockway")
_MAPS: Final = ("balancers", "ends", "vips", "counters")
_MAPPED_BITS: Final = 96
_LOOSE: Final = "2"


class HostSpec(BaseModel):
    """What a backend is to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "main"
    interfaces: list[str] = Field(min_length=1)
    """Where tunnels come in."""
    balancers: list[IPv4Network | IPv6Network] = Field(min_length=1)
    """Where they come from: outer sources that are believed."""
    vips: list[IPv4Address | IPv6Address] = Field(min_length=1)
    """Addresses that this host serves; they are put on its loopback."""
    ends: list[IPv4Address | IPv6Address] = Field(default_factory=list)
    """Addresses of this host that tunnels end at; those of the interfaces if not given."""
    gue_port: int = Field(default=6080, ge=0, le=65535)
    """UDP port of tunnels of `gue`; 0: none are opened."""
    mode: Literal["auto", "native", "generic", "tc"] = "auto"
    """Where tunnels are opened: by XDP, in the driver or behind it, or by tc, where XDP is taken;
    `auto`: by XDP, in the driver if it can."""
    stamp: StampingSpec | None = None
    """What `sockway backend up` stamps on this host, as in a file of `sockway stamp`; its name is
    the backend's unless given."""

    @model_validator(mode="before")
    @classmethod
    def _stamps_have_its_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("stamp"), dict):
            return data
        return data | {"stamp": {"name": data.get("name", "main")} | data["stamp"]}

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The configuration in a TOML file.

        Raises:
            ConfigError: it names the file, the line, the field and what is allowed.

        """
        return parse(cls, text_of(path), str(path))


@dataclass
class Journal:
    """What was changed of the host, and what was there before."""

    vips: list[str] = field(default_factory=list)
    """Addresses that were put on the loopback."""
    sysctls: dict[str, str] = field(default_factory=dict)
    """Settings by their path below /proc/sys, as they were."""
    stamp: str | None = None
    """Name of the stamps that came with it; whoever calls `up` and `down` sees to these."""


class Host:
    """A backend that is set up on this host, in the current network namespace."""

    def __init__(self, name: str, directory: Path, journal: Path) -> None:
        """Take what is there; see `up` and `existing`."""
        self.name = name
        self._directory = directory
        self._journal = journal

    @classmethod
    def up(cls, spec: HostSpec, *, root: Path | str | None = None) -> Self:
        """Set the host up, or bring what is set up to this configuration: all, or nothing.

        Raises:
            ConfigError: an interface or address that the host has not.
            KernelError: the kernel refused a part; nothing is left of it.

        """
        host = cls(spec.name, *_places(spec.name, root))
        was_there = host._directory.is_dir()
        ends = spec.ends or _addresses(spec.interfaces)
        bpffs.ensure_mounted(host._directory.parent)
        host._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with bpffs.lock(host._directory):
                host._write_settings(spec)
                host._load(spec, ends)
        except BaseException:
            if not was_there:
                host.down()
            raise
        return host

    @classmethod
    def existing(cls, name: str = "main", *, root: Path | str | None = None) -> Self:
        """The backend of this name.

        Raises:
            NotFoundError: there is none.

        """
        host = cls(name, *_places(name, root))
        if not host._directory.is_dir() and not host._journal.exists():
            raise NotFoundError(
                f"there is no backend {name!r} in this network namespace",
                hint="`sockway backend up FILE` makes one",
            )
        return host

    def down(self) -> None:
        """Detach, and undo all that was changed of the host."""
        for interface in attachments.attached(self._directory):
            attachments.detach(self._directory, interface)
        shutil.rmtree(self._directory, ignore_errors=True)
        journal = self.journal()
        with _route() as (route, loopback):
            for text in journal.vips:
                address = ip_address(text)
                with contextlib.suppress(Exception):  # taken off by hand meanwhile
                    route.addr("del", index=loopback, address=text, prefixlen=address.max_prefixlen)
        for path, value in journal.sysctls.items():
            with contextlib.suppress(OSError):  # of an interface that is gone
                Path("/proc/sys", path).write_text(value, encoding="ascii")
        self._journal.unlink(missing_ok=True)

    @property
    def interfaces(self) -> list[str]:
        """Where tunnels are opened."""
        return attachments.attached(self._directory)

    def vips(self) -> list[IpAddress]:
        """Addresses whose packets are taken out of tunnels.

        Raises:
            SockwayError: a part of what was set up is not there any more.

        """
        return self._keys("vips")

    def ends(self) -> list[IpAddress]:
        """Addresses that tunnels end at.

        Raises:
            SockwayError: a part of what was set up is not there any more.

        """
        return self._keys("ends")

    def _keys(self, name: str) -> list[IpAddress]:
        kind = LAYOUT.struct("decap_address")
        with Map.from_pin(self._directory / name, key_type=kind) as held:
            return sorted((address_of(key.address) for key in held), key=str)

    def counters(self) -> dict[str, int]:
        """What became of tunnels' packets, by outcome."""
        names = LAYOUT.names("decap_outcome", "DECAP_OUTCOMES")
        kind = LAYOUT.struct("decap_counters")
        with Map.from_pin(self._directory / "counters", value_type=kind) as counters:
            rows = [cpu.outcome for cpu in counters[0]]
        return {name: sum(int(row[i]) for row in rows) for i, name in enumerate(names)}

    def journal(self) -> Journal:
        """What was changed of the host."""
        try:
            return Journal(**json.loads(self._journal.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Journal()

    def _write_settings(self, spec: HostSpec) -> None:
        journal = self.journal()
        journal.stamp = spec.stamp.name if spec.stamp else None
        self._save(journal)
        wanted = {"net/ipv4/conf/all/arp_ignore": "1", "net/ipv4/conf/all/arp_announce": "2"}
        # A client's address comes in by an interface that its route may not name.
        for interface in spec.interfaces:
            wanted[f"net/ipv4/conf/{interface}/rp_filter"] = _LOOSE
        for path, value in wanted.items():
            file = Path("/proc/sys", path)
            try:
                before = file.read_text(encoding="ascii").strip()
            except FileNotFoundError:
                raise ConfigError(
                    f"there is no interface {path.split('/')[3]!r}", hint="see `ip link`"
                ) from None
            if before != value:
                journal.sysctls.setdefault(path, before)
                self._save(journal)
                file.write_text(value, encoding="ascii")
        from pyroute2.netlink.rtnl.ifaddrmsg import IFA_F_NODAD  # noqa: PLC0415 - costly

        with _route() as (route, loopback):
            there = {a.get_attr("IFA_ADDRESS") for a in route.get_addr(index=loopback)}
            for text in [vip for vip in journal.vips if ip_address(vip) not in spec.vips]:
                route.addr(
                    "del", index=loopback, address=text, prefixlen=ip_address(text).max_prefixlen
                )
                journal.vips.remove(text)
                self._save(journal)
            for vip in spec.vips:
                if str(vip) not in there:
                    journal.vips.append(str(vip))
                    self._save(journal)
                    # Without it an IPv6 address can't be bound for a moment.
                    flags = {"flags": IFA_F_NODAD} if isinstance(vip, IPv6Address) else {}
                    route.addr(
                        "add", index=loopback, address=str(vip), prefixlen=vip.max_prefixlen,
                        **flags,
                    )  # fmt: skip

    def _load(self, spec: HostSpec, ends: list[IpAddress]) -> None:
        """Load the programs over new maps, fill them, and give one to all interfaces."""
        with BpfObject.open(LAYOUT.source, name="decap") as made:
            config = LAYOUT.struct("decap_config")()
            config.gue_port = swapped(spec.gue_port)
            config.abi, config.build = LAYOUT.constant("decap_limit", "DECAP_ABI"), LAYOUT.digest
            made.rodata["config"] = config
            several = attachments.has_jumbo(spec.interfaces, _xdp_mode(spec))
            made.programs["decap" if several else "decap_frags"].set_autoload(False)
            old = self._directory / "counters"
            if old.exists():
                with Map.from_pin(old) as counters:
                    made.maps["counters"].reuse(counters)
            made.load()
            _fill(made, spec, ends)
            for name in _MAPS:
                with contextlib.suppress(FileNotFoundError):
                    (self._directory / name).unlink()
                made.map(name).pin(self._directory / name)
            xdp = "decap_frags" if several else "decap"
            with made.program("decap_tc" if spec.mode == "tc" else xdp) as program:
                self._attach(spec, program)

    def _attach(self, spec: HostSpec, program: Program) -> None:
        for interface in spec.interfaces:
            if spec.mode == "tc":
                attachments.attach_tc(self._directory, interface, program)
            else:
                attachments.attach(self._directory, interface, program, _xdp_mode(spec))
        for interface in self.interfaces:
            if interface not in spec.interfaces:
                attachments.detach(self._directory, interface)

    def _save(self, journal: Journal) -> None:
        self._journal.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = self._journal.with_name(f".{self._journal.name}.{os.getpid()}")
        fresh.write_text(json.dumps(asdict(journal)), encoding="utf-8")
        fresh.replace(self._journal)


def _xdp_mode(spec: HostSpec) -> attachments.Mode:
    return "generic" if spec.mode == "tc" else spec.mode


def _fill(made: BpfObject, spec: HostSpec, ends: list[IpAddress]) -> None:
    prefix, single = LAYOUT.struct("decap_prefix"), LAYOUT.struct("decap_address")
    for network in spec.balancers:
        key = prefix()
        key.length = network.prefixlen + (_MAPPED_BITS if isinstance(network, IPv4Network) else 0)
        key.address[:] = words(network.network_address)
        made.map("balancers")[key] = 1
    for name, addresses in (("ends", ends), ("vips", spec.vips)):
        for address in addresses:
            key = single()
            key.address[:] = words(address)
            made.map(name)[key] = 1


def _places(name: str, root: Path | str | None) -> tuple[Path, Path]:
    chosen = root if root is not None else os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT
    cookie = str(current_netns_cookie())
    return (
        Path(chosen) / cookie / f"{PREFIX}{name}",
        runtime_directory() / f"backend-{cookie}-{name}.json",
    )


def runtime_directory() -> Path:
    """Where what was changed of hosts is written down."""
    return Path(os.environ.get(RUNTIME_VARIABLE) or DEFAULT_RUNTIME)


def _addresses(interfaces: list[str]) -> list[IpAddress]:
    """All addresses of the interfaces, but those of the link alone."""
    found: list[IpAddress] = []
    with _route() as (route, _):
        for interface in interfaces:
            for index in route.link_lookup(ifname=interface):
                for entry in route.get_addr(index=index):
                    text = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
                    address = ip_address(text)
                    if not address.is_link_local:
                        found.append(address)
    if not found:
        raise ConfigError(
            f"{', '.join(interfaces)} has no address that tunnels could end at",
            hint="give the interface one, or name them: ends = [...]",
        )
    return found


@contextlib.contextmanager
def _route() -> Iterator[tuple[Any, int]]:
    # Here, for it takes longer to import than all else together.
    from pyroute2 import IPRoute  # noqa: PLC0415

    try:
        with IPRoute() as route:
            yield route, route.link_lookup(ifname="lo")[0]
    except OSError as error:
        raise SockwayError(f"can't ask for addresses: {error}") from error


__all__ = ["Host", "HostSpec", "Journal", "runtime_directory"]
