"""A balancer's pinned maps and programs: made, found again, made larger, brought up to date.

    <root>/<network namespace cookie>/@balancer-<name>/
        current -> maps-<n>     the maps and programs in force
        maps-<n>/               config settings vips pools rings ... balancer explain
        link-<interface>        attachments, by the interface's name

What is made anew is made beside what is there, and comes into force with the renaming of one
symbolic link; attachments then change their program in one step each. A process that dies in
between leaves the old state, whole, and a directory that the next one removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import shake_256
from pathlib import Path
from typing import Any, Final, Self

from sockway.balancer import layout, quicids
from sockway.balancer.idtable import IdTable
from sockway.balancer.idtable import buckets_for as buckets_for_ids
from sockway.balancer.layout import LAYOUT
from sockway.balancer.rings import lines
from sockway.balancer.viptable import VipTable, buckets_for
from sockway.errors import IncompatibleError, NotFoundError, StateError
from sockway.kernel import BpfObject, Map, Program, bpffs, current_netns_cookie
from sockway.kernel.pins import permitted

ROOT_VARIABLE: Final = "SOCKWAY_BPFFS"
DEFAULT_ROOT: Final = Path("/sys/fs/bpf/sockway")
PREFIX: Final = "@balancer-"  # no service can have such a name
CURRENT: Final = "current"
WORD_OCTETS: Final = 8
_BACKENDS: Final = 64
"""That there is room for from the start: larger maps are programs anew, checked by the kernel."""


@dataclass(frozen=True)
class Sizes:
    """How large the maps are."""

    vips: int
    """Entries of the VIP table, and of counters and limits."""
    pools: int
    slots: int
    """Of all rings together."""
    backends: int
    notes: int
    """Pages of a half."""
    flows: int
    """Buckets of the connection table."""
    ids: int
    """Buckets of the table of server IDs."""

    def covers(self, needed: Sizes) -> bool:
        """Whether all that is needed has room; the connection table is not asked for."""
        return (
            self.vips >= needed.vips
            and self.pools >= needed.pools
            and self.slots >= needed.slots
            and self.backends >= needed.backends
            and self.notes >= needed.notes
            and self.ids >= needed.ids
        )

    def rounded(self) -> Sizes:
        """With room to grow: powers of two, and slots for one ring more."""
        return Sizes(
            vips=_power(self.vips, 64),
            pools=_power(self.pools, 4),
            slots=self.slots,
            backends=_power(self.backends, _BACKENDS),
            notes=_power(self.notes, 4),
            flows=self.flows,
            ids=max(self.ids, buckets_for_ids(_BACKENDS)),
        )


def _power(number: int, least: int) -> int:
    return max(least, 1 << max(number - 1, 0).bit_length())


class BalancerState:
    """The open maps and programs of one balancer."""

    def __init__(self, directory: Path, maps: dict[str, Map]) -> None:
        """Take over maps that are open already, by the names of their pins."""
        self.directory = directory
        self.maps = maps
        self._opened = (directory / CURRENT).readlink()
        self.config: Any = maps["config"].read_variable("config", LAYOUT.types)
        self.settings: Any = maps["settings"].mmap(layout.record("settings"))
        self.quic_ids: Any = maps["quic_ids"].mmap(layout.record("quic_ids") * quicids.STARTS)
        self.vips = self.memory("vips")
        self.pools = self.memory("pools")
        self.backends = self.memory("backends")
        self.limits = self.memory("limits")
        self.ids = self.memory("ids")
        self.slots: Any = maps["rings"].mmap(
            layout.record("ring_line") * maps["rings"].info.max_entries
        )

    @classmethod
    def create(
        cls, directory: Path, sizes: Sizes, configure: Callable[[Any], None], *, jumbo: bool = False
    ) -> Self:
        """Load a new balancer and pin it; `jumbo`: for frames of several buffers, too.

        Raises:
            KernelError: the kernel refused it; `VerifierError` has the log.

        """
        with permitted(directory):
            bpffs.ensure_mounted(directory.parent)
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _load(directory, sizes, configure, {}, jumbo=jumbo)
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open what is pinned.

        Raises:
            NotFoundError: nothing is.
            IncompatibleError: it was made by a version with other layouts.
            StateError: a part of it was removed by hand.
            PermissionDenied: this process may not look.

        """
        here = directory / CURRENT
        with permitted(directory):
            if not here.is_dir():
                raise NotFoundError(
                    f"there is no balancer {directory.name.removeprefix(PREFIX)!r} in this "
                    "network namespace",
                    hint="`sockway balancer run FILE` starts one",
                )
        maps: dict[str, Map] = {}
        try:
            for name, pin in layout.PINNED_MAPS.items():
                maps[pin] = _open_map(name, here / pin)
                if pin == "config":  # the first: it tells whether the others can be understood
                    _check_abi(directory, maps[pin])
            return cls(directory, maps)
        except BaseException:
            for opened in maps.values():
                opened.close()
            raise

    @property
    def sizes(self) -> Sizes:
        """What the maps hold."""
        return Sizes(
            vips=self.maps["limits"].info.max_entries - 1,
            pools=self.maps["pools"].info.max_entries,
            slots=self.maps["rings"].info.max_entries * lines_of_one(),
            backends=self.maps["backends"].info.max_entries - 1,
            notes=self.maps["notes"].info.max_entries // 2,
            flows=self.maps["flows"].info.max_entries,
            ids=self.maps["ids"].info.max_entries,
        )

    @property
    def number(self) -> int:
        """Which of the balancer's maps these are."""
        return _number(self._opened)

    @property
    def is_in_force(self) -> bool:
        """Whether these maps are those that packets meet: another process may have renewed them."""
        try:
            return (self.directory / CURRENT).readlink() == self._opened
        except FileNotFoundError:
            return False

    @property
    def is_up_to_date(self) -> bool:
        """Whether its programs are of the build that this package ships."""
        return bool(self.config.build == LAYOUT.digest)

    @property
    def is_jumbo(self) -> bool:
        """Whether its program takes frames of several buffers."""
        with self.program("balancer") as program:
            return program.name == layout.JUMBO["balancer"]

    def memory(self, name: str) -> Any:
        """A map's memory as an array of its values."""
        held = self.maps[name]
        return held.mmap(layout.record(layout.VALUES[name]) * held.info.max_entries)

    def program(self, name: str) -> Program:
        """One of the pinned programs, opened; the caller closes it."""
        return Program.from_pin(self.directory / CURRENT / name)

    def renew(self, sizes: Sizes, configure: Callable[[Any], None], *, jumbo: bool = False) -> None:
        """Load this build's programs over maps of these sizes; what is in the old ones is kept.

        Maps that keep their size are shared with the old programs, the connection table among
        them, so no flow is forgotten. Attachments are the caller's to update.
        """
        shared = {name: self.maps[layout.PINNED_MAPS[name]] for name in _SHARED}
        if jumbo == self.is_jumbo:  # programs of both kinds can't follow on one
            shared[_names(jumbo=jumbo)["next"]] = self.maps["next"]
        here = self.sizes
        for name, attribute in _SIZED.items():
            if getattr(sizes, attribute) == getattr(here, attribute):
                shared[name] = self.maps[name]
        _load(self.directory, sizes, configure, shared, jumbo=jumbo, before=self)
        fresh = type(self).open(self.directory)
        self.close()
        self.__dict__.update(fresh.__dict__)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """The right to change the balancer, one process at a time.

        Raises:
            BusyError: another process has it.

        """
        return bpffs.lock(self.directory)

    def close(self) -> None:
        """Close this process's descriptors; the pinned state stays."""
        # Memory keeps a descriptor of its own.
        self.settings = self.vips = self.pools = self.backends = self.limits = self.slots = None
        self.ids = self.quic_ids = None
        for opened in self.maps.values():
            opened.close()


_SHARED: Final = (".data.settings", ".data.quic_ids", "captured", "explanation")
"""Maps that are never made anew, by their names in the object."""

_SIZED: Final = {
    "vips": "vips",
    "flows": "flows",
    "pools": "pools",
    "rings": "slots",
    "backends": "backends",
    "backend_counters": "backends",
    "limits": "vips",
    "ids": "ids",
    "vip_counters": "vips",
    "notes": "notes",
}


def lines_of_one() -> int:
    """Slots in a value of the map `rings`."""
    return LAYOUT.constant("ring_slot", "RING_LINE")


def directory_of(name: str, root: Path | str | None = None) -> Path:
    """Where a balancer of the current network namespace is pinned."""
    chosen = root if root is not None else os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT
    return Path(chosen) / str(current_netns_cookie()) / f"{PREFIX}{name}"


def hash_key(secret: str | None) -> list[int]:
    """The secret numbers of the flow hash: of a secret, or random."""
    count = layout.limit("HASH_KEYS")
    if secret is None:
        return [secrets.randbits(64) for _ in range(count)]
    raw = shake_256(b"sockway flow hash\0" + secret.encode()).digest(count * WORD_OCTETS)
    words = (raw[at : at + WORD_OCTETS] for at in range(0, len(raw), WORD_OCTETS))
    return [int.from_bytes(word, "little") for word in words]


def _load(
    directory: Path,
    sizes: Sizes,
    configure: Callable[[Any], None],
    shared: dict[str, Map],
    *,
    jumbo: bool,
    before: BalancerState | None = None,
) -> None:
    """Load the programs, over maps that are there or new ones, and bring them into force."""
    sweep(directory)
    number = 1 + max((_number(entry) for entry in directory.glob("maps-*")), default=0)
    fresh = directory / f"maps-{number}"
    buckets = buckets_for(sizes.vips)
    with BpfObject.open(LAYOUT.source, name="balancer") as spec:
        config = layout.record("balancer_config")()
        if before is not None:
            config = type(config).from_buffer_copy(before.config)
        config.flow_mask = sizes.flows - 1
        config.id_shift = 32 - (sizes.ids.bit_length() - 1)
        config.vip_shift = 32 - (buckets.bit_length() - 1)
        config.abi, config.build = layout.limit("BALANCER_ABI"), LAYOUT.digest
        configure(config)
        spec.rodata["config"] = config
        for name, count in _entries(sizes).items():
            spec.maps[name].set_max_entries(count)
        for name, existing in shared.items():
            spec.maps[name].reuse(existing)
        names, left_out = _names(jumbo=jumbo), _names(jumbo=not jumbo)
        spec.programs[left_out["balancer"]].set_autoload(False)
        spec.maps[left_out["next"]].set_autocreate(False)
        spec.load()
        fresh.mkdir(mode=0o700)
        try:
            _pin(spec, fresh, names)
            if before is not None:
                _copy(before, spec, shared)
            link = directory / f"@{CURRENT}-{os.getpid()}"
            link.symlink_to(fresh.name)
            link.rename(directory / CURRENT)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    sweep(directory)


def _names(*, jumbo: bool) -> dict[str, str]:
    """Names in the object, by those of the pins, where they depend on that."""
    return {pin: name if jumbo else pin for pin, name in layout.JUMBO.items()}


def _pin(spec: BpfObject, directory: Path, names: dict[str, str]) -> None:
    for name, pin in layout.PINNED_MAPS.items():
        spec.map(names.get(name, name)).pin(directory / pin)
    for pin in layout.PROGRAMS:
        spec.program(names.get(pin, pin)).pin(directory / pin)


def _entries(sizes: Sizes) -> dict[str, int]:
    """What each map holds, by its name in the object."""
    return {
        "vips": buckets_for(sizes.vips),
        "pools": sizes.pools,
        "rings": lines(sizes.slots),
        "backends": sizes.backends + 1,
        "backend_counters": sizes.backends + 1,
        "limits": sizes.vips + 1,
        "vip_counters": sizes.vips + 1,
        "notes": 2 * sizes.notes,
        "flows": sizes.flows,
        "ids": sizes.ids,
    }


def _copy(before: BalancerState, spec: BpfObject, shared: dict[str, Map]) -> None:
    """What the old maps hold, into the new ones."""
    for name, parts in (("pools", 1), ("rings", 1), ("backends", 1), ("limits", 1), ("notes", 2)):
        if name not in shared:
            _copy_array(before.maps[name], spec.map(name), parts)
    if "vips" not in shared:
        with spec.map("vips") as made:
            buckets = made.info.max_entries
            table = VipTable(made.mmap(layout.record("vip_bucket") * buckets), buckets)
            for key, value in VipTable(before.vips, len(before.vips)).items():
                table.put(key, value)
    if "ids" not in shared:
        old, new = before.maps["ids"], spec.map("ids")
        kind = layout.record("id_bucket")
        ids = IdTable(new.mmap(kind * new.info.max_entries), new.info.max_entries)
        ids.bring(dict(IdTable(before.ids, old.info.max_entries).items()))
    for name in ("vip_counters", "backend_counters"):
        if name not in shared:
            counters = spec.map(name)
            items = [(k, v) for k, v in before.maps[name].items() if k < counters.info.max_entries]
            counters.update_batch([k for k, _ in items], [v for _, v in items])


def _copy_array(old: Map, new: Map, parts: int) -> None:
    """What an array holds, each of its equal parts into the same part of the other."""
    before = old.mmap_bytes()[: old.info.max_entries * old.info.value_size]
    size, room = len(before) // parts, new.info.max_entries * new.info.value_size // parts
    memory: Any = new.mmap(ctypes.c_char * (room * parts))
    for part in range(parts):
        length = min(size, room)
        memory[part * room : part * room + length] = before[
            part * size : part * size + length
        ].tobytes()


def sweep(directory: Path) -> None:
    """Remove what is not in force: of a process that died, or of the state before."""
    current = directory / CURRENT
    kept = current.readlink().name if current.is_symlink() else None
    for entry in directory.glob("maps-*"):
        if entry.name != kept:
            shutil.rmtree(entry, ignore_errors=True)
    for entry in directory.glob(f"@{CURRENT}-*"):
        entry.unlink(missing_ok=True)


def _number(entry: Path) -> int:
    return int(entry.name.rpartition("-")[2])


def _open_map(name: str, pin: Path) -> Map:
    value = layout.record(layout.VALUES[name]) if name in layout.VALUES else None
    try:
        return Map.from_pin(pin, value_type=value, types=LAYOUT.types)
    except NotFoundError as error:
        raise StateError(
            f"the state of the balancer is not whole: {pin} is missing",
            hint="remove it and start again: `sockway balancer remove`",
        ) from error


def _check_abi(directory: Path, config_map: Map) -> None:
    config = config_map.read_variable("config", LAYOUT.types)
    if config.abi != layout.limit("BALANCER_ABI"):
        raise IncompatibleError(
            f"balancer {directory.name.removeprefix(PREFIX)!r} was made by another version of "
            f"Sockway (layout {config.abi}, this one has {layout.limit('BALANCER_ABI')})",
            hint="use that version, or `sockway balancer remove` it and start again",
        )
