"""What a compiled object declares, as Python sees it.

Every layout, number and name comes from the object's BTF, so that nothing that C declares is
written down a second time. The object is opened once, for its types alone.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from importlib import resources
from typing import Any

from sockway.kernel.btf import Types
from sockway.kernel.object import BpfObject


class ObjectLayout:
    """The types and constants of one object of the package."""

    def __init__(self, name: str) -> None:
        """Take the object's name, without its suffix."""
        self.name = name
        self._structs: dict[str, Any] = {}

    @cached_property
    def source(self) -> bytes:
        """The compiled object as it is in the package."""
        folder = resources.files("sockway.kernel").joinpath("objects")
        return folder.joinpath(f"{self.name}.bpf.o").read_bytes()

    @cached_property
    def digest(self) -> int:
        """64 bits that tell one build of the object from another."""
        return int.from_bytes(hashlib.sha256(self.source).digest()[:8], "little")

    @cached_property
    def types(self) -> Types:
        """The object's types."""
        with BpfObject.open(self.source, name=self.name) as spec:
            return spec.types

    def struct(self, name: str) -> Any:
        """The C struct `name` as a ctypes structure class."""
        if name not in self._structs:
            self._structs[name] = self.types.struct(name)
        return self._structs[name]

    def constant(self, enum: str, name: str) -> int:
        """The value of `name` in the C enum `enum`."""
        return int(self.types.enum(enum)[name].value)

    def names(self, enum: str, last: str) -> tuple[str, ...]:
        """Names of a C enum that counts from 0, in lower case, up to and without `last`."""
        members = sorted(self.types.enum(enum), key=lambda member: int(member.value))
        return tuple(m.name.lower() for m in members if m.name != last)


__all__ = ["ObjectLayout"]
