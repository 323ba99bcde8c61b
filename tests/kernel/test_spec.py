from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from sockway.errors import KernelError
from sockway.kernel import BpfObject, Link, Map, MapType, Program

pytestmark = pytest.mark.root


def test_a_spec_of_a_closed_object_is_an_error(shapes: BpfObject) -> None:
    """What libbpf has freed is not looked at, whoever still holds the spec."""
    cells, drop = shapes.maps["cells"], shapes.programs["drop"]
    shapes.close()
    for use in (lambda: cells.name, lambda: cells.set_max_entries(1), lambda: drop.section):
        with pytest.raises(KernelError, match="closed"):
            use()
    with pytest.raises(KernelError, match="shapes is closed"):
        shapes.rodata["scalar"] = 1


def test_a_constant_of_another_size_is_refused(shapes: BpfObject) -> None:
    """A number too large is not cut off, and a structure too large does not reach its neighbour."""
    before = bytes(shapes.maps[".rodata"].initial_value())
    for value in (1 << 32, -1, shapes.types.struct("settings")()):
        with pytest.raises(KernelError, match="constant scalar"):
            shapes.rodata["scalar"] = value
    assert bytes(shapes.maps[".rodata"].initial_value()) == before


def test_a_forgotten_descriptor_is_closed(loaded: BpfObject) -> None:
    """A handle that nobody closed takes its descriptor with it."""
    makers: tuple[Callable[[], Map | Program | Link], ...] = (
        lambda: Map.create(MapType.ARRAY, key_size=4, value_size=4, max_entries=1),
        lambda: loaded.program("drop"),
        lambda: Link(os.dup(2)),
    )
    for make in makers:
        forgotten = make()
        fd = forgotten.fd
        del forgotten  # nothing else refers to it
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
