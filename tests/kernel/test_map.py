from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sockway.errors import KernelError, NotFoundError, PermissionDenied
from sockway.kernel import BpfObject, Map, MapType, possible_cpus
from tests.kernel.child import as_nobody

pytestmark = pytest.mark.root

Make = Callable[..., Map]
NO_PREALLOC = 1
MMAPABLE = 1 << 10
SO_COOKIE = 57


def test_elements_come_and_go(make_map: Make) -> None:
    """A hash map is used as a dict is."""
    numbers = make_map(MapType.HASH)
    numbers[1] = 10
    numbers[2] = 20
    numbers[1] = 11
    assert (numbers[1], numbers.get(3), numbers.get(3, 0), len(numbers)) == (11, None, 0, 2)
    assert (1 in numbers, 3 in numbers) == (True, False)
    assert dict(numbers.items()) == {1: 11, 2: 20}
    assert sorted(numbers) == sorted(numbers.keys()) == [1, 2]
    assert numbers.pop(1) == 11
    assert numbers.pop(1, None) is None
    del numbers[2]
    assert len(numbers) == 0
    assert bool(numbers)
    for use in (lambda: numbers[2], lambda: numbers.pop(2), lambda: numbers.__delitem__(2)):
        with pytest.raises(KeyError):
            use()


def test_structures_are_keys_and_values(loaded: BpfObject) -> None:
    """Types come from the object: what is written is read as the same type."""
    point, either = loaded.types.struct("point"), loaded.types.struct("either")
    with loaded.map("points") as points:
        points[point(x=-1, y=2)] = either(number=0x0201)
        assert list(points[point(x=-1, y=2)].bytes[:2]) == [1, 2]
        (key,) = points
        assert (key.x, key.y) == (-1, 2)
        assert point(x=0, y=2) not in points


def test_sizes_that_do_not_fit_are_refused(make_map: Make) -> None:
    """A key or value of another size, or a number too large, never reaches the kernel."""
    numbers = make_map(MapType.HASH)
    for key, value in ((b"123", 0), (0, b"1234567"), (1 << 32, 0), (0, 1 << 64), (-1, 0)):
        with pytest.raises(KernelError, match="octets"):
            numbers[key] = value
    assert len(numbers) == 0


def test_a_full_map_says_which(make_map: Make) -> None:
    """The error names the map."""
    numbers = make_map(MapType.HASH, max_entries=1, name="tiny")
    numbers[1] = 1
    with pytest.raises(KernelError, match=r"tiny.*E2BIG"):
        numbers[2] = 2


def test_an_array_is_always_full(make_map: Make) -> None:
    """All indexes have a value; one beyond the end does not exist, and none can go."""
    array = make_map(MapType.ARRAY, max_entries=3)
    array[2] = 7
    assert list(array.items()) == [(0, 0), (1, 0), (2, 7)]
    with pytest.raises(KernelError, match="E2BIG"):
        array[3] = 1
    with pytest.raises(KeyError):
        array[3]
    with pytest.raises(KernelError):
        del array[1]


def test_per_cpu_values_are_lists(make_map: Make) -> None:
    """One item per possible CPU, also where a value is not a multiple of eight octets."""
    counts = make_map(MapType.PERCPU_HASH, value_size=4)
    values = list(range(100, 100 + possible_cpus()))
    counts[5] = values
    assert counts[5] == values
    assert list(counts.lookup_batch()) == [(5, values)]
    with pytest.raises(KernelError, match="CPUs"):
        counts[5] = [*values, 0]


def test_an_lru_map_forgets(make_map: Make) -> None:
    """It takes more keys than it can hold, and the newest is there."""
    recent = make_map(MapType.LRU_HASH, max_entries=64)
    for key in range(1000):
        recent[key] = key
    assert recent[999] == 999
    assert 0 < len(recent) <= 64


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
def test_batches_carry_more_than_one_call_does(make_map: Make, kind: MapType) -> None:
    """A thousand elements go in at once and come out in portions of 64; none twice."""
    numbers = make_map(kind, max_entries=20_000)
    keys = list(range(0, 10_000, 10))
    numbers.update_batch(keys, [key + 1 for key in keys])
    read = list(numbers.lookup_batch(64))
    assert len(read) == 1000
    assert dict(read) == {key: key + 1 for key in keys}


def test_a_batch_smaller_than_a_bucket_grows(make_map: Make) -> None:
    """Keys of one hash bucket are given together, or not at all: the portion grows until it can."""
    numbers = make_map(MapType.HASH, max_entries=512)
    numbers.update_batch(list(range(512)), list(range(512)))
    assert dict(numbers.lookup_batch(1)) == {key: key for key in range(512)}


def test_batches_of_an_array(make_map: Make) -> None:
    """An array is written and read in batches too, its last portion included."""
    array = make_map(MapType.ARRAY, max_entries=100)
    array.update_batch(list(range(100)), list(range(100, 200)))
    assert list(array.lookup_batch(33)) == [(key, key + 100) for key in range(100)]


def test_a_batch_deletes_what_is_there(make_map: Make) -> None:
    """Keys that are missing, at either end or between, are passed over."""
    numbers = make_map(MapType.HASH, max_entries=100)
    numbers.update_batch(list(range(10)), list(range(10)))
    numbers.delete_batch([50, 0, 1, 51, 52, 2, 9, 53])
    assert sorted(numbers) == [3, 4, 5, 6, 7, 8]
    numbers.delete_batch([])
    numbers.update_batch([], [])


def test_a_batch_needs_a_value_for_each_key(make_map: Make) -> None:
    """Otherwise the kernel would read what lies behind them."""
    numbers = make_map(MapType.HASH)
    with pytest.raises(KernelError, match="2 keys and 1 values"):
        numbers.update_batch([1, 2], [1])
    assert len(numbers) == 0


def test_iteration_ends_while_others_delete(make_map: Make) -> None:
    """The kernel begins anew when the last key is gone; it is given up after as many as fit."""
    numbers = make_map(MapType.HASH, max_entries=16)
    numbers.update_batch(list(range(16)), list(range(16)))
    seen = 0
    for key in numbers:
        del numbers[key]
        numbers[1000 + seen] = 0  # a new one for each that goes
        seen += 1
    assert 0 < seen <= 16


def test_what_has_no_keys_can_not_be_iterated(make_map: Make) -> None:
    """An error and not an empty list."""
    ring = make_map(MapType.RINGBUF, key_size=0, value_size=0, max_entries=4096)
    with pytest.raises(KernelError, match="go through"):
        list(ring)


def test_maps_of_maps_take_maps_in_batches(loaded: BpfObject, make_map: Make) -> None:
    """Socket arrays of any size go in as maps; their numbers come out, and open them again."""
    inner = [
        make_map(MapType.REUSEPORT_SOCKARRAY, max_entries=size, name=f"size{size}")
        for size in range(1, 101)
    ]
    with loaded.map("arrays") as arrays:
        arrays.update_batch(list(range(100)), inner)
        arrays[100] = inner[0].fd
        read = dict(arrays.lookup_batch(7))
        assert read == {key: inner[key % 100].info.id for key in range(101)}
        with Map.from_id(arrays[42]) as again:
            assert (again.info.name, again.info.max_entries) == ("size43", 43)
        arrays.delete_batch(list(range(100)))
        assert list(arrays) == [100]
        with pytest.raises(KernelError, match="EINVAL"):
            arrays[1] = make_map(MapType.ARRAY)  # not what it was made for


def test_memory_is_shared_with_programs(loaded: BpfObject) -> None:
    """A store in Python is what the program adds, and its sum is read without a call."""
    cell = loaded.types.struct("cell")
    with loaded.map("cells") as cells, loaded.program("count") as program:
        memory = cells.mmap(cell * 4)
        memory[1].add = 7
        program.test_run(bytes(64), repeat=3)
        assert memory[0].packets == 21
        assert cells[0].packets == 21
        with cells.mmap_bytes() as raw:
            assert raw.readonly
            assert cell.from_buffer_copy(raw).packets == 21


def test_sections_of_variables_are_maps(loaded: BpfObject) -> None:
    """`.data.shapes` is found by its name; a variable that is not its first is read and written."""
    types = loaded.types
    with loaded.map(".data.shapes") as section:
        assert section.read_variable("shapes", types).first == 42
        memory = section.mmap(ctypes.c_uint8 * section.info.value_size)
        memory[types.variable("shapes")[1]] = 43
        copy = section.read_variable("shapes", types)
        assert (copy.first, copy.middle) == (43, 5)
        assert section.read_variable("before", types).value == 1


def test_only_maps_made_for_it_can_be_mapped(make_map: Make) -> None:
    """Without BPF_F_MMAPABLE it is an error that names the map."""
    array = make_map(MapType.ARRAY, name="closed")
    with pytest.raises(KernelError, match="closed"):
        array.mmap(ctypes.c_uint64)
    larger = make_map(MapType.ARRAY, flags=MMAPABLE, name="small")
    with pytest.raises(KernelError, match="small"):
        larger.mmap(ctypes.c_uint8 * 10_000)


def test_pins_keep_a_map(make_map: Make, bpffs_root: Path) -> None:
    """What is pinned is there after its descriptor is closed, and goes with the pin."""
    numbers = make_map(MapType.HASH, name="kept")
    numbers[1] = 2
    numbers.pin(bpffs_root / "kept")
    numbers.close()
    with Map.from_pin(bpffs_root / "kept", value_type=ctypes.c_int64) as again:
        assert (again.info.name, again[1]) == ("kept", 2)
    (bpffs_root / "kept").unlink()
    with pytest.raises(NotFoundError, match="kept"):
        Map.from_pin(bpffs_root / "kept")


def test_pins_need_bpffs_and_a_free_name(make_map: Make, bpffs_root: Path, tmp_path: Path) -> None:
    """A path elsewhere, and one that is taken, are errors that name it."""
    numbers = make_map(MapType.HASH)
    with pytest.raises(KernelError, match="elsewhere"):
        numbers.pin(tmp_path / "elsewhere")
    numbers.pin(bpffs_root / "taken")
    with pytest.raises(KernelError, match=r"taken.*EEXIST"):
        numbers.pin(bpffs_root / "taken")


def test_a_closed_map_is_told(make_map: Make) -> None:
    """Use after close is an error; closing twice is none."""
    numbers = make_map(MapType.HASH)
    numbers.close()
    numbers.close()
    with pytest.raises(KernelError, match="EBADF"):
        numbers[1] = 1


def test_what_is_no_map_is_told_and_closed() -> None:
    """A descriptor of something else is refused, and not left open."""
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(KernelError):
        Map(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_wrong_attributes_are_the_kernels_error() -> None:
    """The map type is named."""
    with pytest.raises(KernelError, match=r"ringbuf.*EINVAL") as caught:
        Map.create(MapType.RINGBUF, key_size=0, value_size=0, max_entries=1000)
    assert not isinstance(caught.value, PermissionDenied)


def test_without_rights_no_map(make_map: Make) -> None:
    """A user without capabilities gets PermissionDenied, for creating and for opening by number."""
    number = make_map(MapType.HASH).info.id
    words = as_nobody(lambda: Map.create(MapType.HASH, key_size=4, value_size=4, max_entries=1))
    assert words.startswith("PermissionDenied: can't create a hash map")
    assert as_nobody(lambda: Map.from_id(number)).startswith("PermissionDenied: can't open")


def test_a_batch_where_the_kernel_has_none() -> None:
    """A kind of map without batches is written one by one, and the caller is told."""
    with Map.create(MapType.HASH, key_size=4, value_size=4, max_entries=4) as known:
        assert known.update_batch([1, 2], [3, 4])
    with (
        socket.create_server(("127.0.0.1", 0), reuse_port=True) as one,
        socket.create_server(("127.0.0.1", 0), reuse_port=True) as two,
        Map.create(MapType.REUSEPORT_SOCKARRAY, key_size=4, value_size=8, max_entries=2) as array,
    ):
        assert not array.update_batch([0, 1], [one.fileno(), two.fileno()])
        for key, sock in enumerate((one, two)):
            cookie = sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)
            assert array[key] == int.from_bytes(cookie, "little")
