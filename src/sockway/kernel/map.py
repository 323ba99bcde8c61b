"""Maps: typed access, batches, maps of maps, memory-mapped arrays."""

from __future__ import annotations

import ctypes
import errno
import mmap as memory  # `mmap` is a method here
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from sockway.errors import KernelError
from sockway.kernel.ffi import check, error_of, ffi, lib
from sockway.kernel.mapinfo import MapType, possible_cpus, read_info
from sockway.kernel.octets import from_bytes, plain, to_bytes
from sockway.kernel.pins import open_pin, pin

if TYPE_CHECKING:
    from types import TracebackType

    from sockway.kernel.btf import Types

_BATCH_OPTS: Final = 24
_CREATE_OPTS: Final = 48
_ENOTSUPP: Final = 524
"""The kernel's own "not supported", which no header for programs has."""


_PER_CPU: Final = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
_OF_MAPS: Final = frozenset({MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS})


class Map:
    """An open map. Keys and values are ctypes objects of its types, or plain numbers.

    A per-CPU value is a list with an item for each possible CPU. The value of a map of maps is a
    map (or its descriptor) when written and a map's id when read.
    """

    def __init__(
        self, fd: int, key_type: Any = None, value_type: Any = None, types: Types | None = None
    ) -> None:
        """Take over the descriptor `fd`."""
        self.fd = fd
        self.types = types
        try:
            self.info = read_info(fd)
        except BaseException:
            self.close()
            raise
        self.type = self.info.type
        self._key = key_type or plain(self.info.key_size)
        self._value = value_type or plain(self.info.value_size)
        self._is_per_cpu = self.type in _PER_CPU
        self._stride = self.info.value_size
        if self._is_per_cpu:
            self._stride = (self.info.value_size + 7) // 8 * 8
        self._value_octets = self._stride * (possible_cpus() if self._is_per_cpu else 1)

    # Getting one

    @classmethod
    def create(
        cls,
        kind: MapType,
        *,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        name: str = "",
        inner: Map | None = None,
        key_type: Any = None,
        value_type: Any = None,
    ) -> Self:
        """Create a map.

        Raises:
            KernelError: the kernel refused it.

        """
        opts = ffi.new("struct map_create_opts *")
        opts.sz = _CREATE_OPTS
        opts.map_flags = flags
        if inner is not None:
            opts.inner_map_fd = inner.fd
        fd = lib.bpf_map_create(
            int(kind), name.encode()[:15], key_size, value_size, max_entries, opts
        )
        return cls(check(fd, f"create a {kind.name.lower()} map"), key_type, value_type)

    @classmethod
    def from_pin(
        cls,
        path: Path | str,
        *,
        key_type: Any = None,
        value_type: Any = None,
        types: Types | None = None,
    ) -> Self:
        """Open a pinned map.

        Raises:
            NotFoundError: nothing is pinned there.

        """
        return cls(open_pin(path), key_type, value_type, types)

    @classmethod
    def from_id(cls, map_id: int, *, key_type: Any = None, value_type: Any = None) -> Self:
        """Open a map by its id in the kernel."""
        fd = check(lib.bpf_map_get_fd_by_id(map_id), f"open the map with id {map_id}")
        return cls(fd, key_type, value_type)

    def pin(self, path: Path | str) -> None:
        """Pin it at a path in bpffs."""
        pin(self.fd, path)

    def close(self) -> None:
        """Close the descriptor; what is pinned or in use goes on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

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

    def __del__(self) -> None:
        """Close a descriptor that was forgotten."""
        if getattr(self, "fd", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        """Name and type."""
        kind = MapType(self.type).name.lower() if self.type in set(MapType) else self.type
        return f"<Map {self.info.name} ({kind}, {self.info.max_entries})>"

    # Elements

    def __getitem__(self, key: Any) -> Any:
        """The value at `key`.

        Raises:
            KeyError: there is none.

        """
        value = ffi.new("char[]", self._value_octets)
        result = lib.bpf_map_lookup_elem(self.fd, self._key_bytes(key), value)
        if result == -errno.ENOENT:
            raise KeyError(key)
        check(result, f"read map {self.info.name}")
        return self._to_value(bytes(ffi.buffer(value)))

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write the value at `key`."""
        result = lib.bpf_map_update_elem(self.fd, self._key_bytes(key), self._value_bytes(value), 0)
        check(result, f"write map {self.info.name}")

    def __delitem__(self, key: Any) -> None:
        """Take out `key`.

        Raises:
            KeyError: it is not there.

        """
        result = lib.bpf_map_delete_elem(self.fd, self._key_bytes(key))
        if result == -errno.ENOENT:
            raise KeyError(key)
        check(result, f"take a key out of map {self.info.name}")

    def __contains__(self, key: Any) -> bool:
        """Whether `key` has a value."""
        return self.get(key) is not None

    def get(self, key: Any, default: Any = None) -> Any:
        """The value at `key`, or `default`."""
        try:
            return self[key]
        except KeyError:
            return default

    def pop(self, key: Any, *default: Any) -> Any:
        """Take out `key` and return its value, or `default` where that is given."""
        try:
            value = self[key]
            del self[key]
        except KeyError:
            if default:
                return default[0]
            raise
        return value

    def __iter__(self) -> Iterator[Any]:
        """All keys; while others delete, some may be missing and some come twice."""
        following = ffi.new("char[]", self.info.key_size)
        key = ffi.NULL
        # The kernel begins anew at a key that is gone: with others deleting, only a count ends it.
        for _ in range(self.info.max_entries):
            result = lib.bpf_map_get_next_key(self.fd, key, following)
            if result == -errno.ENOENT:
                return
            check(result, f"go through map {self.info.name}")
            raw = bytes(ffi.buffer(following))
            yield from_bytes(self._key, raw)
            key = ffi.from_buffer(raw)

    def keys(self) -> Iterator[Any]:
        """All keys."""
        return iter(self)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """All keys with their values."""
        for key in list(self):
            value = self.get(key)
            if value is not None:
                yield key, value

    def __len__(self) -> int:
        """How many keys there are; counted."""
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        """A map is true, also an empty one."""
        return True

    # Batches

    def update_batch(self, keys: Sequence[Any], values: Sequence[Any]) -> bool:
        """Write many elements in one call of the kernel; for a map of maps, one grace period.

        Where the kernel has no batches for this kind of map they are written one by one.

        Returns:
            Whether it was one call.

        Raises:
            KernelError: the kernel refused an element.

        """
        if len(keys) != len(values):
            raise KernelError(f"{len(keys)} keys and {len(values)} values for map {self.info.name}")
        if not keys:
            return True
        count = ffi.new("__u32 *", len(keys))
        all_keys = b"".join(bytes(self._key_bytes(key)) for key in keys)
        all_values = b"".join(bytes(self._value_bytes(value)) for value in values)
        result = lib.bpf_map_update_batch(self.fd, all_keys, all_values, count, self._opts())
        if result == -_ENOTSUPP:
            for key, value in zip(keys, values, strict=True):
                self[key] = value
            return False
        check(result, f"write {len(keys)} elements of map {self.info.name}")
        return True

    def delete_batch(self, keys: Sequence[Any]) -> None:
        """Take out many elements in one call; those that are not there are passed over."""
        raw = ffi.from_buffer(b"".join(self._key_bytes(key) for key in keys))
        opts, at = self._opts(), 0
        while at < len(keys):
            count = ffi.new("__u32 *", len(keys) - at)
            start = raw + at * self.info.key_size
            result = lib.bpf_map_delete_batch(self.fd, start, count, opts)
            if result == 0:
                return
            if result != -errno.ENOENT:
                check(result, f"delete {len(keys) - at} elements of map {self.info.name}")
            at += int(count[0]) + 1  # past the one that is not there

    def lookup_batch(self, size: int = 4096) -> Iterator[tuple[Any, Any]]:
        """All elements, `size` in a call of the kernel, or more where a hash bucket has more."""
        # Hash maps need room for their own cursor, whatever the key's size.
        cursor, following = (ffi.new("char[]", max(8, self.info.key_size)) for _ in range(2))
        at = ffi.NULL
        while True:
            keys = ffi.new("char[]", size * self.info.key_size)
            values = ffi.new("char[]", size * self._value_octets)
            count = ffi.new("__u32 *", size)
            result = lib.bpf_map_lookup_batch(
                self.fd, at, following, keys, values, count, self._opts()
            )
            if result == -errno.ENOSPC and size < self.info.max_entries:
                # A bucket is given whole or not at all; the cursor has not moved.
                size *= 2
                continue
            if result not in {0, -errno.ENOENT}:
                check(result, f"read map {self.info.name}")
            yield from self._split(
                int(count[0]), bytes(ffi.buffer(keys)), bytes(ffi.buffer(values))
            )
            if result:
                return
            cursor, following = following, cursor
            at = cursor

    def _split(self, count: int, keys: bytes, values: bytes) -> Iterator[tuple[Any, Any]]:
        """The first `count` elements of what a batch has brought."""
        key_octets, value_octets = self.info.key_size, self._value_octets
        for each in range(count):
            key = keys[each * key_octets : (each + 1) * key_octets]
            value = values[each * value_octets : (each + 1) * value_octets]
            yield from_bytes(self._key, key), self._to_value(value)

    # Memory

    def mmap(self, kind: Any) -> Any:
        """The map's memory (BPF_F_MMAPABLE) as a ctypes object: a store is seen at once.

        Args:
            kind: a ctypes type no larger than the map's values together.

        Raises:
            KernelError: it is larger, or the map is none that can be mapped.

        """
        memory = self._memory(write=True)
        if ctypes.sizeof(kind) > len(memory):
            raise KernelError(
                f"map {self.info.name} has {len(memory)} octets of memory, "
                f"not {ctypes.sizeof(kind)}"
            )
        return kind.from_buffer(memory)

    def mmap_bytes(self) -> memoryview:
        """The map's memory, to read."""
        return memoryview(self._memory(write=False))

    def read_variable(self, name: str, types: Types) -> Any:
        """A copy of the global variable `name`, of the section that this map holds."""
        _section, offset, kind = types.variable(name)
        value = ffi.new("char[]", self.info.value_size)
        zero = (0).to_bytes(4, "little")
        check(lib.bpf_map_lookup_elem(self.fd, zero, value), f"read {name}")
        return kind.from_buffer_copy(bytes(ffi.buffer(value)), offset)

    def _memory(self, *, write: bool) -> memory.mmap:
        octets = (self.info.value_size + 7) // 8 * 8 * self.info.max_entries
        pages = (octets + memory.PAGESIZE - 1) // memory.PAGESIZE
        protection = memory.PROT_READ | (memory.PROT_WRITE if write else 0)
        try:
            return memory.mmap(self.fd, pages * memory.PAGESIZE, memory.MAP_SHARED, protection)
        except OSError as error:
            raise error_of(error.errno or 0, f"map {self.info.name} into memory") from error

    # Octets

    def _opts(self) -> Any:
        opts = ffi.new("struct batch_opts *")
        opts.sz = _BATCH_OPTS
        return opts

    def _key_bytes(self, key: Any) -> bytes:
        return to_bytes(self._key, key, self.info.key_size, f"a key of map {self.info.name}")

    def _value_bytes(self, value: Any) -> bytes:
        if self.type in _OF_MAPS and isinstance(value, Map):
            value = value.fd
        what = f"a value of map {self.info.name}"
        if not self._is_per_cpu:
            return to_bytes(self._value, value, self.info.value_size, what)
        if len(value) != possible_cpus():
            raise KernelError(f"{len(value)} values for {possible_cpus()} CPUs")
        parts = (to_bytes(self._value, each, self.info.value_size, what) for each in value)
        return b"".join(part.ljust(self._stride, b"\0") for part in parts)

    def _to_value(self, raw: bytes) -> Any:
        if not self._is_per_cpu:
            return from_bytes(self._value, raw)
        return [
            from_bytes(self._value, raw[at : at + self.info.value_size])
            for at in range(0, len(raw), self._stride)
        ]
