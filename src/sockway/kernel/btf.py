"""BTF: the types of a BPF object, as ctypes structures and enums.

The format is that of the kernel's Documentation/bpf/btf.rst. Layouts are taken as they stand,
offset by offset: a structure that ctypes would lay out otherwise is an error here and not a wrong
number later.
"""

from __future__ import annotations

import ctypes
import enum
import struct
from dataclasses import dataclass
from typing import Any, Final

from sockway.errors import KernelError, NotFoundError

_MAGIC: Final = 0xEB9F
INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = range(1, 9)
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = range(9, 16)
FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(16, 20)

_SIGNED: Final = 1
_ALIASES: Final = frozenset({TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG})
_EXTRA: Final = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}
_PER_MEMBER: Final = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}
_INTS: Final[dict[tuple[int, bool], type[Any]]] = {
    (1, False): ctypes.c_uint8, (2, False): ctypes.c_uint16,
    (4, False): ctypes.c_uint32, (8, False): ctypes.c_uint64,
    (1, True): ctypes.c_int8, (2, True): ctypes.c_int16,
    (4, True): ctypes.c_int32, (8, True): ctypes.c_int64,
}  # fmt: skip


@dataclass(frozen=True)
class BtfType:
    """One type as it is written."""

    kind: int
    name: str
    size_or_type: int
    flag: bool
    members: tuple[tuple[Any, ...], ...]
    """Per kind: see `_read_members`."""


class Types:
    """All types of one BTF blob, by name; ctypes classes are made when asked for, and kept."""

    def __init__(self, raw: bytes) -> None:
        """Read a BTF blob (the `.BTF` section, or what the kernel gives).

        Raises:
            KernelError: it is none.

        """
        self._types = _parse(raw)
        self._made: dict[int, Any] = {}
        self._enums: dict[str, type[enum.IntEnum]] = {}

    def struct(self, name: str) -> Any:
        """The structure or union `name` as a ctypes class with the C layout.

        Raises:
            NotFoundError: the object has no such type.

        """
        return self.ctype(self._find({STRUCT, UNION}, name))

    def enum(self, name: str) -> type[enum.IntEnum]:
        """The enum `name`.

        Raises:
            NotFoundError: the object has no such enum.

        """
        if name not in self._enums:
            found = self._types[self._find({ENUM, ENUM64}, name)]
            members = {str(n): int(v) for n, v in found.members}
            made: Any = enum.IntEnum(name, members)  # type: ignore[misc]  # made at run time
            self._enums[name] = made
        return self._enums[name]

    def variable(self, name: str) -> tuple[str, int, Any]:
        """Section, offset in it, and ctypes type of a global variable.

        Raises:
            NotFoundError: the object has no such variable.

        """
        for btf_type in self._types:
            if btf_type.kind != DATASEC:
                continue
            for type_id, offset, _size in btf_type.members:
                variable = self._types[type_id]
                if variable.name == name:
                    return btf_type.name, offset, self.ctype(variable.size_or_type)
        raise NotFoundError(f"the object has no variable {name!r}")

    def ctype(self, type_id: int) -> Any:
        """The ctypes type with this id; None for void."""
        if type_id not in self._made:
            self._made[type_id] = self._make(type_id)
        return self._made[type_id]

    def _find(self, kinds: set[int], name: str) -> int:
        for type_id, btf_type in enumerate(self._types):
            if btf_type.kind in kinds and btf_type.name == name:
                return type_id
        raise NotFoundError(f"the object's BTF has no {name!r}; is it in the manifest?")

    def _make(self, type_id: int) -> Any:
        if type_id == 0:
            return None
        btf_type = self._types[type_id]
        kind = btf_type.kind
        made: Any = None
        if kind in {INT, ENUM, ENUM64}:
            made = _INTS.get((btf_type.size_or_type, btf_type.flag))
        elif kind == PTR:
            made = ctypes.c_uint64  # an address in another world
        elif kind == ARRAY:
            element, count = btf_type.members[0]
            made = self.ctype(element) * count
        elif kind in _ALIASES:
            made = self.ctype(btf_type.size_or_type)
        elif kind in {STRUCT, UNION}:
            made = self._make_record(type_id, btf_type)
        if made is None and kind not in _ALIASES:
            raise KernelError(f"BTF kind {kind} ({btf_type.name!r}) has no ctypes form")
        return made

    def _make_record(self, type_id: int, btf_type: BtfType) -> Any:
        base = ctypes.Union if btf_type.kind == UNION else ctypes.Structure
        made: Any = type(btf_type.name or f"anonymous_{type_id}", (base,), {})
        self._made[type_id] = made
        fields: list[tuple[Any, ...]] = []
        anonymous: list[str] = []
        for index, (name, member, _bits, width) in enumerate(btf_type.members):
            field = name or f"_{index}"
            if not name:
                anonymous.append(field)
            kind = self.ctype(member)
            fields.append((field, kind, width) if width else (field, kind))
        made._anonymous_ = anonymous
        made._fields_ = fields
        if ctypes.sizeof(made) != btf_type.size_or_type:
            raise KernelError(
                f"struct {btf_type.name} has {btf_type.size_or_type} octets in C and "
                f"{ctypes.sizeof(made)} in Python; packed structures can't be shared"
            )
        for (field, *_), (_name, _member, bits, width) in zip(
            fields, btf_type.members, strict=True
        ):
            at = getattr(made, field)
            # ctypes has a bit field's place in the lower half of its size.
            if at.offset * 8 + (at.size & 0xFFFF if width else 0) != bits:
                raise KernelError(f"{btf_type.name}.{field} is at another offset in C")
        return made


def _parse(raw: bytes) -> list[BtfType]:
    if len(raw) < 24 or struct.unpack_from("<H", raw)[0] != _MAGIC:  # noqa: PLR2004
        raise KernelError("not BTF: the magic number is missing")
    header, type_at, type_size, str_at, str_size = struct.unpack_from("<IIIII", raw, 4)
    strings = raw[header + str_at : header + str_at + str_size]
    data = raw[header + type_at : header + type_at + type_size]
    types = [BtfType(0, "void", 0, False, ())]
    at = 0
    while at < len(data):
        name_at, info, size_or_type = struct.unpack_from("<III", data, at)
        kind, count, flag = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
        at += 12
        size = _EXTRA.get(kind, 0) + count * _PER_MEMBER.get(kind, 0)
        members = _read_members(kind, data[at : at + size], strings, flag=flag)
        if kind == INT:
            flag = bool(struct.unpack_from("<I", data, at)[0] >> 24 & _SIGNED)
        at += size
        types.append(BtfType(kind, _string(strings, name_at), size_or_type, flag, members))
    return types


def _read_members(
    kind: int, data: bytes, strings: bytes, *, flag: bool
) -> tuple[tuple[Any, ...], ...]:
    """Members by kind: (name, type, bit offset, bit width), (name, value), (type, offset, size)."""
    if kind in {STRUCT, UNION}:
        return tuple(
            (_string(strings, name), member, bits & 0xFFFFFF if flag else bits,
             bits >> 24 if flag else 0)
            for name, member, bits in struct.iter_unpack("<III", data)
        )  # fmt: skip
    if kind == ENUM:
        layout = "<Ii" if flag else "<II"
        return tuple((_string(strings, n), v) for n, v in struct.iter_unpack(layout, data))
    if kind == ENUM64:
        layout = "<IIi" if flag else "<III"
        return tuple(
            (_string(strings, n), low | high << 32)
            for n, low, high in struct.iter_unpack(layout, data)
        )
    if kind == ARRAY:
        element, _index, length = struct.unpack("<III", data)
        return ((element, length),)
    if kind == DATASEC:
        return tuple(struct.iter_unpack("<III", data))
    return ()


def _string(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()
