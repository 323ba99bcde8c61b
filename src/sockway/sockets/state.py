"""A service's state in bpffs: where it is pinned, how it is created and adopted.

    <root>/<network namespace cookie>/<service>/   config service vips arrays weights flows
                                                   vip_counters worker_counters route_*

No process has to live for packets to be routed: reuseport groups hold the programs, the programs
hold the maps, and the pins let the next process find them. A new directory is filled under a name
that no reader looks for and renamed into place, so a failure on the way leaves nothing behind. Who
changes a service holds the lock of its directory, which the kernel drops when the holder dies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

from sockway.errors import (
    ConfigError,
    IncompatibleError,
    NotFoundError,
    PermissionDenied,
    StateError,
)
from sockway.kernel import BpfObject, Map, MapType, Program, bpffs, current_netns_cookie
from sockway.sockets import layout
from sockway.sockets.weights import cpu_points
from sockway.wire.addresses import FlowMode

DEFAULT_ROOT: Final = Path("/sys/fs/bpf/sockway")
ROOT_VARIABLE: Final = "SOCKWAY_BPFFS"
MAX_VIPS: Final = 4096
MAX_TIMEOUT: Final = 14_400.0
"""Seconds; the flow table's clock wraps soon after."""
FLOW_TIMEOUT: Final = 120.0
ID_TIMEOUT: Final = 30.0
_TICK: Final = (1 << 30) / 1e9
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_NEW: Final = "@new-"
_OLD: Final = "@old-"


def check_name(name: str) -> str:
    """The name of a service, if it can be one.

    Raises:
        ConfigError: bpffs could not hold it.

    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"service name {name!r} can't be used",
            hint="use 1 to 63 letters, digits, '-' and '_', a letter or digit first",
        )
    return name


def namespace_directory(root: Path | str | None = None) -> Path:
    """Where the services of the current network namespace are pinned."""
    chosen = root if root is not None else os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT
    return Path(chosen) / str(current_netns_cookie())


def service_names(root: Path | str | None = None) -> list[str]:
    """Names of the services pinned for the current network namespace, sorted."""
    directory = namespace_directory(root)
    try:
        with _permitted(directory):
            entries = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in entries if not name.startswith("@"))


def flow_buckets(flows: int) -> int:
    """Buckets of a table for `flows` flows: twice the places, a power of two."""
    ways = layout.constant("flow_limit", "FLOW_WAYS")
    return max(1, 1 << (2 * flows // ways - 1).bit_length()) if flows > 0 else 1


class RouterState:
    """The pinned maps and programs of one service, and its record in memory."""

    def __init__(self, directory: Path, maps: dict[str, Map]) -> None:
        """Take over maps that are open already, by the names of their pins."""
        self.directory = directory
        self.maps = maps
        self.config: Any = maps["config"].read_variable("config", layout.types())
        self.record: Any = maps["service"].mmap(layout.struct("service"))
        self._programs: dict[str, Program] = {}
        self._empty: int | None = None

    @classmethod
    def create(
        cls, directory: Path, *, flows: int, vips: int, flow_timeout: float, id_timeout: float
    ) -> Self:
        """Load a new router and pin it as `directory`; open what another process was quicker with.

        Raises:
            KernelError: the kernel refused it; `VerifierError` has the log.

        """
        with _permitted(directory):
            bpffs.ensure_mounted(directory.parent)
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep(directory)
        fresh = directory.parent / f"{_NEW}{directory.name}-{os.getpid()}"
        generations = layout.limit("GENERATIONS")
        buckets = flow_buckets(flows)
        with BpfObject.open(layout.object_bytes(), name="router") as spec:
            config = _new_config(buckets - 1, flow_timeout, id_timeout)
            spec.rodata["config"] = config
            spec.maps["vips"].set_max_entries(vips)
            spec.maps["arrays"].set_max_entries((vips + 1) * generations)
            spec.maps["flows"].set_max_entries(buckets)
            spec.maps["vip_counters"].set_max_entries(vips + 1)
            spec.load()
            # Group 0 is nobody's: what is there stands for "no sockets" anywhere else.
            with spec.map("arrays") as arrays, new_array(1) as empty:
                arrays[0] = empty
            with spec.map(".data.service") as service:
                _place_cpus(service.mmap(layout.struct("service")))
            fresh.mkdir(mode=0o700)
            try:
                for name, pin in layout.PINNED_MAPS.items():
                    spec.map(name).pin(fresh / pin)
                for program in layout.PROGRAMS.values():
                    spec.program(program).pin(fresh / program)
                _rename_unless_taken(fresh, directory)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open what is pinned as `directory`.

        Raises:
            NotFoundError: nothing is.
            IncompatibleError: it was made by a version with other layouts.
            StateError: a part of it was removed by hand.
            PermissionDenied: this process may not look.

        """
        with _permitted(directory):
            is_there = directory.is_dir()
        if not is_there:
            raise NotFoundError(
                f"there is no service {directory.name!r} in this network namespace",
                hint="`sockway status` lists those that are there",
            )
        maps: dict[str, Map] = {}
        try:
            for name, pin in layout.PINNED_MAPS.items():
                maps[pin] = _open_map(name, directory / pin)
                if name == ".rodata":  # the first: it tells whether the others can be understood
                    _check_layout(directory.name, maps[pin])
            return cls(directory, maps)
        except BaseException:
            for opened in maps.values():
                opened.close()
            raise

    @property
    def id_key(self) -> bytes:
        """The key of the host's octets in connection IDs, 16 octets."""
        return b"".join(int(word).to_bytes(8, "little") for word in self.config.id_key)

    @property
    def flow_capacity(self) -> int:
        """Entries that the flow table has."""
        return int(self.config.flow_mask + 1) * layout.constant("flow_limit", "FLOW_WAYS")

    def program(self, flow: FlowMode) -> Program:
        """The program for VIPs of this flow mode; of the build that this package ships.

        Where the pinned programs are of another build with the same layouts, new ones are loaded
        over the same maps and take the pins' places: the caller attaches them to its groups, and
        each group switches in one step.
        """
        name = layout.PROGRAMS[flow.value]
        if name not in self._programs:
            if self.config.build != layout.build_digest():
                self._upgrade()
            self._programs[name] = Program.from_pin(self.directory / name)
        return self._programs[name]

    def has_array(self, index: int) -> bool:
        """Whether `arrays` has sockets of a generation there."""
        arrays = self.maps["arrays"]
        if self._empty is None:
            self._empty = int(arrays[0])
        return bool(arrays.get(index, self._empty) != self._empty)

    def clear_arrays(self, indices: Sequence[int]) -> None:
        """Take arrays out, in one step: the kernel waits for a grace period once a call.

        When this returns, no packet is on its way to a socket of theirs.
        """
        arrays = self.maps["arrays"]
        with Map.from_id(int(arrays[0])) as empty:
            arrays.update_batch(indices, [empty] * len(indices))

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """The right to change the service, one process at a time.

        Raises:
            BusyError: another process has it.

        """
        return bpffs.lock(self.directory)

    def remove(self) -> None:
        """Unpin all of it. Groups that still have sockets keep their program until these go."""
        # In one step out of everyone's sight: half of it would be of no use to the next start.
        sweep(self.directory)
        old = self.directory.with_name(f"{_OLD}{self.directory.name}-{os.getpid()}")
        self.directory.rename(old)
        shutil.rmtree(old)
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()

    def close(self) -> None:
        """Close this process's descriptors; the pinned state stays."""
        self.record = None
        for program in self._programs.values():
            program.close()
        for opened in self.maps.values():
            opened.close()

    def _upgrade(self) -> None:
        """Load this build's programs over the pinned maps and replace the pins."""
        with BpfObject.open(layout.object_bytes(), name="router") as spec:
            config = type(self.config).from_buffer_copy(self.config)
            config.build = layout.build_digest()
            spec.rodata["config"] = config
            for name, pin in layout.PINNED_MAPS.items():
                if name != ".rodata":
                    spec.maps[name].reuse(self.maps[pin])
            spec.load()
            for program in layout.PROGRAMS.values():
                _replace_pin(spec.program(program), self.directory / program)
            # The last: a process killed before this leaves the upgrade to the next.
            _replace_pin(spec.map(".rodata"), self.directory / "config")
        self.config = config


def new_array(workers: int) -> Map:
    """An array for the sockets of so many workers."""
    return Map.create(
        MapType.REUSEPORT_SOCKARRAY, key_size=4, value_size=8, max_entries=workers, name="sockets"
    )


def sweep(directory: Path) -> None:
    """Remove what dead processes left half-made or half-removed of this service."""
    for prefix in (_NEW, _OLD):
        for entry in directory.parent.glob(f"{prefix}{directory.name}-*"):
            maker = entry.name.rpartition("-")[2]
            if not Path("/proc", maker).exists() or maker == str(os.getpid()):
                shutil.rmtree(entry, ignore_errors=True)


def _place_cpus(record: Any) -> None:
    points, width = cpu_points(os.cpu_count() or 1, layout.limit("CPUS"))
    record.cpu_point[:] = points
    record.cpu_width = width


def _open_map(name: str, pin: Path) -> Map:
    key, value = layout_of_map(name)
    try:
        return Map.from_pin(pin, key_type=key, value_type=value, types=layout.types())
    except NotFoundError as error:
        raise StateError(
            f"the state of service {pin.parent.name!r} is not whole: {pin} is missing",
            hint=f"stop the service and remove what is left: rm -r {pin.parent}",
        ) from error


def _check_layout(service: str, config_map: Map) -> None:
    config = config_map.read_variable("config", layout.types())
    if config.abi != layout.limit("ROUTER_ABI"):
        raise IncompatibleError(
            f"service {service!r} was made by another version of Sockway "
            f"(layout {config.abi}, this one has {layout.limit('ROUTER_ABI')})",
            hint="use that version, or stop the service and `sockway remove` it",
        )


@contextlib.contextmanager
def _permitted(directory: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise PermissionDenied(
            f"this process may not use {directory}", hint="run as root, as the service does"
        ) from error


def _rename_unless_taken(fresh: Path, directory: Path) -> None:
    try:
        fresh.rename(directory)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise


def layout_of_map(name: str) -> tuple[Any, Any]:
    """Key and value types of a map of the router, from the object's BTF."""
    with BpfObject.open(layout.object_bytes(), name="router") as spec:
        return spec.maps[name].key_type, spec.maps[name].value_type


def _new_config(flow_mask: int, flow_timeout: float, id_timeout: float) -> Any:
    config = layout.struct("router_config")()
    config.id_key[:] = [secrets.randbits(64), secrets.randbits(64)]
    config.flow_key[:] = [secrets.randbits(64) for _ in config.flow_key]
    config.flow_mask = flow_mask
    config.flow_timeout = max(1, round(flow_timeout / _TICK))
    config.id_timeout = max(1, round(id_timeout / _TICK))
    config.abi = layout.limit("ROUTER_ABI")
    config.build = layout.build_digest()
    return config


def _replace_pin(thing: Map | Program, path: Path) -> None:
    fresh = path.with_name(f"{_NEW}{path.name}")
    fresh.unlink(missing_ok=True)
    thing.pin(fresh)
    fresh.rename(path)
