"""BPF objects: what a compiled file declares, and what it becomes when it is loaded.

`BpfObject.open` reads the file and asks the kernel for nothing: its maps and programs are specs
that can be looked at and changed. `load` makes them real. After that `map` and `program` give
handles of their own, which outlive the object.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from sockway.errors import FeatureError, KernelError, NotFoundError, PermissionDenied, VerifierError
from sockway.kernel.btf import Types
from sockway.kernel.ffi import check, ffi, lib, take_words
from sockway.kernel.map import Map
from sockway.kernel.program import Program

if TYPE_CHECKING:
    import ctypes
    from types import TracebackType

_LOG: Final = re.compile(
    r"prog '(?P<name>[^']+)': -- BEGIN PROG LOAD LOG --\n(?P<log>.*?)-- END PROG LOAD LOG --",
    re.DOTALL,
)
_REFUSED: Final = re.compile(r"prog '(?P<name>[^']+)': BPF program load failed")
_SKIPPED: Final = ("processed ", "verification time", "stack depth", "-- ", "; ")
EPERM: Final = 1


_Spec = TypeVar("_Spec", bound="MapSpec | ProgramSpec")


class MapSpec:
    """A map as the object declares it, to be changed before it is loaded."""

    def __init__(self, pointer: Any, types: Types) -> None:
        """Refer to libbpf's map."""
        self._pointer = pointer
        self._types = types
        self._template = -1

    @property
    def name(self) -> str:
        """Its name in the object; a section's name for global variables."""
        name = str(ffi.string(lib.bpf_map__name(self._pointer)).decode())
        # libbpf puts the object's name before the standard sections.
        return name[name.index(".") :] if "." in name else name

    @property
    def max_entries(self) -> int:
        """How many elements it can hold."""
        return int(lib.bpf_map__max_entries(self._pointer))

    @property
    def key_type(self) -> Any:
        """The ctypes type of its keys, or None where the object does not say."""
        return self._types.ctype(int(lib.bpf_map__btf_key_type_id(self._pointer)))

    @property
    def value_type(self) -> Any:
        """The ctypes type of its values, or None where the object does not say."""
        if self.name.startswith("."):
            return None  # a section of variables: `Types.variable` knows them
        return self._types.ctype(int(lib.bpf_map__btf_value_type_id(self._pointer)))

    def set_max_entries(self, entries: int) -> None:
        """Let it hold `entries` elements."""
        check(
            lib.bpf_map__set_max_entries(self._pointer, entries),
            f"give map {self.name} {entries} entries",
        )

    def set_inner(self, inner: Map) -> None:
        """What maps this map of maps holds: such as `inner`.

        Raises:
            KernelError: this is no map of maps, or it has been told before.

        """
        # libbpf remembers the number and takes no part in the descriptor.
        fd = os.dup(inner.fd)
        try:
            check(
                lib.bpf_map__set_inner_map_fd(self._pointer, fd),
                f"give map {self.name} its template",
            )
        except KernelError:
            os.close(fd)
            raise
        self._template = fd

    def drop_template(self) -> None:
        """Close what `set_inner` keeps open for the load."""
        if self._template >= 0:
            os.close(self._template)
            self._template = -1

    def reuse(self, existing: Map) -> None:
        """Take an existing map instead of making one.

        Raises:
            KernelError: it is of another kind or size.

        """
        # libbpf takes over whatever it is given, and the verifier knows only that.
        declared = (
            int(lib.bpf_map__type(self._pointer)),
            int(lib.bpf_map__key_size(self._pointer)),
            int(lib.bpf_map__value_size(self._pointer)),
        )
        info = existing.info
        if declared != (info.type, info.key_size, info.value_size):
            raise KernelError(
                f"map {info.name} can't be {self.name}: type and octets of key and value are "
                f"{info.type}, {info.key_size}, {info.value_size} and should be "
                f"{', '.join(map(str, declared))}"
            )
        self.set_max_entries(info.max_entries)
        check(lib.bpf_map__reuse_fd(self._pointer, existing.fd), f"reuse a map as {self.name}")

    def set_autocreate(self, autocreate: bool) -> None:  # noqa: FBT001 - a setter
        """Whether it is made at all when the object is loaded."""
        check(lib.bpf_map__set_autocreate(self._pointer, autocreate), f"leave out {self.name}")

    def initial_value(self) -> memoryview:
        """A section's variables as they will be when loaded, to write."""
        size = ffi.new("size_t *")
        start = lib.bpf_map__initial_value(self._pointer, size)
        if start == ffi.NULL:
            raise KernelError(f"map {self.name} has no initial value")
        return memoryview(ffi.buffer(start, size[0]))

    def fd(self) -> int:
        """The descriptor that libbpf holds, once loaded."""
        return int(lib.bpf_map__fd(self._pointer))


class ProgramSpec:
    """A program as the object declares it."""

    def __init__(self, pointer: Any) -> None:
        """Refer to libbpf's program."""
        self._pointer = pointer

    @property
    def name(self) -> str:
        """The C function's name."""
        return str(ffi.string(lib.bpf_program__name(self._pointer)).decode())

    @property
    def section(self) -> str:
        """Its section, which tells its type."""
        return str(ffi.string(lib.bpf_program__section_name(self._pointer)).decode())

    @property
    def instructions(self) -> int:
        """How many it has, with its subprograms."""
        return int(lib.bpf_program__insn_cnt(self._pointer))

    def set_autoload(self, autoload: bool) -> None:  # noqa: FBT001 - a setter
        """Whether it is loaded with the object."""
        check(lib.bpf_program__set_autoload(self._pointer, autoload), f"leave out {self.name}")

    def fd(self) -> int:
        """The descriptor that libbpf holds, once loaded."""
        return int(lib.bpf_program__fd(self._pointer))


class Rodata:
    """The object's constants (`.rodata`), to be set before it is loaded."""

    def __init__(self, spec: BpfObject) -> None:
        """Write into this object's section."""
        self._object = spec

    def __setitem__(self, name: str, value: ctypes.Structure | int) -> None:
        """Give the constant `name` its value.

        Raises:
            NotFoundError: there is no such constant.

        """
        section, offset, kind = self._object.types.variable(name)
        if self._object.is_loaded:
            raise KernelError(f"{name} can't change any more: the object is loaded")
        raw = bytes(kind(value) if isinstance(value, int) else value)
        self._object.maps[section].initial_value()[offset : offset + len(raw)] = raw


class BpfObject:
    """An object file, opened and perhaps loaded."""

    def __init__(self, pointer: Any, name: str) -> None:
        """Use `BpfObject.open`."""
        self._pointer = pointer
        self.name = name
        self.is_loaded = False
        btf = lib.bpf_object__btf(pointer)
        if btf == ffi.NULL:  # libbpf itself would follow it
            raise KernelError(f"object {name} has no BTF", hint="compile it with -g")
        size = ffi.new("__u32 *")
        raw = lib.btf__raw_data(btf, size)
        self.types = Types(bytes(ffi.buffer(raw, size[0])))
        self.maps: Mapping[str, MapSpec] = {m.name: m for m in self._read_maps()}
        self.programs: Mapping[str, ProgramSpec] = {p.name: p for p in self._read_programs()}
        self.rodata = Rodata(self)

    @classmethod
    def open(cls, source: Path | str | bytes, name: str | None = None) -> Self:
        """Read an object file, or its bytes.

        Raises:
            KernelError: it is no BPF object.

        """
        raw = source if isinstance(source, bytes) else Path(source).read_bytes()
        called = name or (Path(source).name if not isinstance(source, bytes) else "object")
        opts = ffi.new("struct open_opts *")
        opts.sz = ffi.sizeof("struct open_opts")
        c_name = ffi.new("char[]", called.encode())
        opts.object_name = c_name
        take_words()
        pointer = lib.bpf_object__open_mem(raw, len(raw), opts)
        words = take_words()
        if pointer == ffi.NULL:
            raise KernelError(f"{called} is no BPF object: {words.strip() or 'unreadable'}")
        try:
            return cls(pointer, called)
        except BaseException:
            lib.bpf_object__close(pointer)
            raise

    def load(self) -> None:
        """Make maps and programs in the kernel.

        Raises:
            VerifierError: a program was refused; it has the verifier's log.
            PermissionDenied: this process may not.
            FeatureError: the kernel does not know a map or program type.
            KernelError: any other refusal.

        """
        if self._pointer is None:
            raise KernelError(f"object {self.name} is closed")
        take_words()
        result = lib.bpf_object__load(self._pointer)
        words = take_words()
        for spec in self.maps.values():
            spec.drop_template()
        if result < 0:
            raise _refusal(self.name, -result, words)
        self.is_loaded = True

    def map(self, name: str) -> Map:
        """A handle on a loaded map.

        Raises:
            NotFoundError: the object has none of this name.

        """
        spec = self._loaded(self.maps, name, "map")
        return Map(os.dup(spec.fd()), spec.key_type, spec.value_type, self.types)

    def program(self, name: str) -> Program:
        """A handle on a loaded program.

        Raises:
            NotFoundError: the object has none of this name.

        """
        return Program(os.dup(self._loaded(self.programs, name, "program").fd()))

    def close(self) -> None:
        """Let go of libbpf's descriptors; handles, pins and attachments go on."""
        if self._pointer is not None:
            for spec in self.maps.values():
                spec.drop_template()
            lib.bpf_object__close(self._pointer)
            self._pointer = None
            # Specs refer into what libbpf has just freed.
            self.maps, self.programs, self.is_loaded = {}, {}, False

    def __enter__(self) -> Self:
        """Return itself; it is closed when the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _loaded(self, specs: Mapping[str, _Spec], name: str, what: str) -> _Spec:
        if not self.is_loaded:
            raise KernelError(f"object {self.name} is not loaded")
        if name not in specs:
            raise NotFoundError(f"object {self.name} has no {what} {name!r}")
        if specs[name].fd() < 0:
            raise KernelError(f"{what} {name} of object {self.name} was left out of the load")
        return specs[name]

    def _read_maps(self) -> list[MapSpec]:
        found: list[MapSpec] = []
        pointer = lib.bpf_object__next_map(self._pointer, ffi.NULL)
        while pointer != ffi.NULL:
            found.append(MapSpec(pointer, self.types))
            pointer = lib.bpf_object__next_map(self._pointer, pointer)
        return found

    def _read_programs(self) -> list[ProgramSpec]:
        found: list[ProgramSpec] = []
        pointer = lib.bpf_object__next_program(self._pointer, ffi.NULL)
        while pointer != ffi.NULL:
            found.append(ProgramSpec(pointer))
            pointer = lib.bpf_object__next_program(self._pointer, pointer)
        return found


def _refusal(name: str, number: int, words: str) -> KernelError:
    """The error for a load that failed, by what libbpf and the verifier said."""
    reason = os.strerror(number)
    log = _LOG.search(words)
    if log is not None and log["log"].strip():
        telling = _telling_line(log["log"])
        return VerifierError(
            f"the verifier refused program {log['name']} of {name}: {telling}", log=log["log"]
        )
    said = " ".join(words.split())
    if number == EPERM:
        return PermissionDenied(
            f"can't load {name}: {reason}",
            hint="run as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN",
        )
    refused = _REFUSED.search(words)
    if refused is not None:
        return FeatureError(
            f"the kernel does not take program {refused['name']} of {name}: {reason}",
            hint="`sockway doctor` tells what this kernel can do",
        )
    return KernelError(f"can't load {name}: {reason}: {said}")


def _telling_line(log: str) -> str:
    """The verifier's last line that says something of the program itself."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_SKIPPED)]
    return (telling or lines or ["no log"])[-1]
