from __future__ import annotations

import ctypes

import pytest

from sockway.errors import KernelError, NotFoundError
from sockway.kernel import BpfObject, Types
from tests.kernel.conftest import Compile


def test_layouts_are_those_of_c(shapes: BpfObject) -> None:
    """Padding, typedefs, qualifiers, arrays of arrays and unions have the compiler's offsets."""
    made = shapes.types.struct("shapes")
    offsets = {name: getattr(made, name).offset for name, *_ in made._fields_}
    assert offsets == {
        "first": 0, "at": 4, "grid": 12, "either": 64, "_4": 72, "color": 80,
        "low": 84, "middle": 84, "high": 84, "flag": 88, "pointer": 96, "name": 104,
    }  # fmt: skip
    assert ctypes.sizeof(made) == 120


def test_a_structure_holds_what_is_put_into_it(shapes: BpfObject) -> None:
    """Nested, signed and anonymous members are written and read back through octets."""
    value = shapes.types.struct("shapes")()
    value.at.x = -2
    value.grid[1][2].y = 77
    value.either.number = 0x0102
    value.inside, value.that = 3, -1
    value.color = -3
    value.name[:7] = b"sockway"
    again = type(value).from_buffer_copy(bytes(value))
    assert (again.at.x, again.grid[1][2].y) == (-2, 77)
    assert list(again.either.bytes[:2]) == [2, 1]
    assert (again.inside, again.this, again.color) == (3, 0xFFFFFFFF, -3)
    assert bytes(again.name[:8]) == b"sockway\0"


def test_bit_fields_lie_where_the_compiler_puts_them(shapes: BpfObject) -> None:
    """Three bit fields share a word, the first in the lowest bits."""
    value = shapes.types.struct("shapes")()
    value.low, value.middle, value.high = 5, 0x1ABC, 0xBEEF
    raw = bytes(value)[84:88]
    assert int.from_bytes(raw, "little") == 5 | 0x1ABC << 3 | 0xBEEF << 16


def test_enums_have_the_names_and_values_of_c(shapes: BpfObject) -> None:
    """Negative values and values beyond 32 bits included."""
    color = shapes.types.enum("color")
    assert {each.name: each.value for each in color} == {"RED": 1, "GREEN": 5, "BLUE": -3}
    assert shapes.types.enum("wide")["WIDE"] == 1 << 40
    assert shapes.types.enum("deep")["DEEP"] == -(1 << 40)


def test_types_are_made_once(shapes: BpfObject) -> None:
    """The class of a nested member is the class of that name: instances can be assigned."""
    value = shapes.types.struct("shapes")()
    value.at = shapes.types.struct("point")(x=1, y=2)
    assert value.at.y == 2
    assert shapes.types.struct("point") is shapes.types.struct("point")
    assert shapes.types.enum("color") is shapes.types.enum("color")


def test_variables_are_found_in_their_sections(shapes: BpfObject) -> None:
    """A global has section, offset and type."""
    section, offset, kind = shapes.types.variable("shapes")
    assert (section, offset) == (".data.shapes", 8)
    assert kind is shapes.types.struct("shapes")
    assert shapes.types.variable("scalar")[0] == ".rodata"


def test_what_is_not_there_is_named(shapes: BpfObject) -> None:
    """Each kind of look-up tells which name it did not find."""
    for look in (shapes.types.struct, shapes.types.enum, shapes.types.variable):
        with pytest.raises(NotFoundError, match="'nonesuch'"):
            look("nonesuch")


@pytest.mark.parametrize("name", ["packed", "moved"])
def test_a_layout_that_ctypes_can_not_have_is_an_error(compiled: Compile, name: str) -> None:
    """Packed members, and a gap that BTF does not tell of, are refused and not misread."""
    with (
        BpfObject.open(compiled("packed")) as opened,
        pytest.raises(KernelError, match=name),
    ):
        opened.types.struct(name)


def test_other_octets_are_not_btf() -> None:
    """A blob without the magic number is refused."""
    for raw in (b"", b"\x9f", bytes(64)):
        with pytest.raises(KernelError, match="magic"):
            Types(raw)
