"""BPF objects: what a compiled file declares, and what it becomes when it is loaded.

`BpfObject.open` reads the file and asks the kernel for nothing: its maps and programs are specs
that can be looked at and changed. `load` makes them real. After that `map` and `program` give
handles of their own, which outlive the object.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from sockway.errors import FeatureError, KernelError, NotFoundError, PermissionDenied, VerifierError
from sockway.kernel.btf import Types
from sockway.kernel.ffi import ffi, lib, take_words
from sockway.kernel.map import Map
from sockway.kernel.octets import to_bytes
from sockway.kernel.program import Program
from sockway.kernel.spec import MapSpec, ProgramSpec

if TYPE_CHECKING:
    from types import TracebackType

_LOG: Final = re.compile(
    r"prog '(?P<name>[^']+)': -- BEGIN PROG LOAD LOG --\n(?P<log>.*?)-- END PROG LOAD LOG --",
    re.DOTALL,
)
_REFUSED: Final = re.compile(r"prog '(?P<name>[^']+)': BPF program load failed")
_SKIPPED: Final = ("processed ", "verification time", "stack depth", "-- ", "; ")
EPERM: Final = 1


_Spec = TypeVar("_Spec", bound="MapSpec | ProgramSpec")


class Rodata:
    """The object's constants (`.rodata`), to be set before it is loaded."""

    def __init__(self, spec: BpfObject) -> None:
        """Write into this object's section."""
        self._object = spec

    def __setitem__(self, name: str, value: ctypes.Structure | int) -> None:
        """Give the constant `name` its value.

        Raises:
            NotFoundError: there is no such constant.
            KernelError: the value does not fit, or the object is loaded.

        """
        section, offset, kind = self._object.types.variable(name)
        if self._object.is_loaded:
            raise KernelError(f"{name} can't change any more: the object is loaded")
        size = ctypes.sizeof(kind)
        raw = to_bytes(kind, value, size, f"constant {name}")
        if section not in self._object.maps:
            raise KernelError(f"object {self._object.name} is closed")
        self._object.maps[section].initial_value()[offset : offset + size] = raw


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
            # Specs refer into what libbpf frees, and somebody may hold one.
            for spec in (*self.maps.values(), *self.programs.values()):
                spec.forget()
            self.maps, self.programs, self.is_loaded = {}, {}, False
            lib.bpf_object__close(self._pointer)
            self._pointer = None

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
