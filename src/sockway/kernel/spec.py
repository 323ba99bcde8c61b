"""Specs: what an object declares, to be looked at and changed before it is loaded."""

from __future__ import annotations

import os
from typing import Any

from sockway.errors import KernelError
from sockway.kernel.btf import Types
from sockway.kernel.ffi import check, ffi, lib
from sockway.kernel.map import Map


class _Spec:
    """What an object declares, as libbpf holds it: there until the object is closed."""

    def __init__(self, pointer: Any) -> None:
        """Refer to libbpf's memory."""
        self._at = pointer

    @property
    def _pointer(self) -> Any:
        if self._at is None:  # libbpf would follow where it pointed
            raise KernelError("the object that declares it is closed")
        return self._at

    def forget(self) -> None:
        """The object is about to be closed: let go of what belongs to it."""
        self._at = None


class MapSpec(_Spec):
    """A map as the object declares it, to be changed before it is loaded."""

    def __init__(self, pointer: Any, types: Types) -> None:
        """Refer to libbpf's map."""
        super().__init__(pointer)
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

    def forget(self) -> None:
        """The object is about to be closed: let go of what belongs to it."""
        self.drop_template()
        super().forget()

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


class ProgramSpec(_Spec):
    """A program as the object declares it."""

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

    def code(self) -> bytes:
        """Return its instructions, eight octets each; of a loaded object with all it calls."""
        start = lib.bpf_program__insns(self._pointer)
        return bytes(ffi.buffer(ffi.cast("char *", start), 8 * self.instructions))

    def set_autoload(self, autoload: bool) -> None:  # noqa: FBT001 - a setter
        """Whether it is loaded with the object."""
        check(lib.bpf_program__set_autoload(self._pointer, autoload), f"leave out {self.name}")

    def fd(self) -> int:
        """The descriptor that libbpf holds, once loaded."""
        return int(lib.bpf_program__fd(self._pointer))
