from __future__ import annotations

from pathlib import Path

import pytest

from hatch_build import compile_object
from sockway.errors import KernelError, NotFoundError, VerifierError
from sockway.kernel import BpfObject, Map, MapType
from tests.kernel.child import as_nobody
from tests.kernel.conftest import Compile

XDP_DROP = 1
FRAME = bytes(64)


def test_an_open_object_tells_what_it_declares(shapes: BpfObject) -> None:
    """Maps and programs have the names, sizes and sections of the source; nothing is loaded."""
    assert {"cells", "points", "arrays", ".rodata", ".data.shapes"} <= set(shapes.maps)
    assert shapes.maps["points"].max_entries == 8
    assert shapes.programs["count"].section == "xdp"
    assert shapes.programs["count"].instructions > 5
    with pytest.raises(KernelError, match="not loaded"):
        shapes.map("cells")


@pytest.mark.root
def test_constants_are_set_before_the_load(shapes: BpfObject) -> None:
    """A structure and a number in .rodata reach the program; afterwards they are fixed."""
    shapes.rodata["settings"] = shapes.types.struct("settings")(verdict=XDP_DROP)
    shapes.rodata["scalar"] = 9
    shapes.load()
    with shapes.program("count") as program, shapes.map(".rodata") as constants:
        assert program.test_run(FRAME).retval == XDP_DROP
        assert constants.read_variable("scalar", shapes.types).value == 9
    with pytest.raises(KernelError, match="loaded"):
        shapes.rodata["scalar"] = 10


def test_a_constant_that_is_not_there_is_named(shapes: BpfObject) -> None:
    """Setting a constant by a wrong name tells the name."""
    with pytest.raises(NotFoundError, match="nonesuch"):
        shapes.rodata["nonesuch"] = 1


@pytest.mark.root
def test_sizes_are_set_before_the_load(shapes: BpfObject) -> None:
    """A map is as large as it was last told to be."""
    shapes.maps["points"].set_max_entries(1000)
    shapes.load()
    with shapes.map("points") as points:
        assert points.info.max_entries == 1000
        assert points.info.name == "points"


@pytest.mark.root
def test_programs_and_maps_can_be_left_out(shapes: BpfObject) -> None:
    """What is not loaded can't be had; the rest works."""
    shapes.programs["tell"].set_autoload(False)
    shapes.maps["events"].set_autocreate(False)
    shapes.load()
    for missing in (lambda: shapes.program("tell"), lambda: shapes.map("events")):
        with pytest.raises(KernelError, match="left out"):
            missing()
    with shapes.program("drop") as program:
        assert program.test_run(FRAME).retval == XDP_DROP


@pytest.mark.root
def test_a_map_can_be_of_another_object(shapes: BpfObject, compiled: Compile) -> None:
    """Two loads of one object share a map that is reused, and no other."""
    shapes.load()
    with (
        shapes.map("points") as mine,
        BpfObject.open(compiled("shapes"), name="second") as second,
    ):
        second.maps["points"].reuse(mine)
        second.load()
        with second.map("points") as theirs, second.map("cells") as cells:
            assert theirs.info.id == mine.info.id
            with shapes.map("cells") as my_cells:
                assert cells.info.id != my_cells.info.id


@pytest.mark.root
def test_a_map_of_another_kind_can_not_be_reused(shapes: BpfObject) -> None:
    """The sizes have to be those that the object declares."""
    with (
        Map.create(MapType.HASH, key_size=4, value_size=4, max_entries=1) as other,
        pytest.raises(KernelError, match="points"),
    ):
        shapes.maps["points"].reuse(other)


@pytest.mark.root
def test_the_template_of_a_map_of_maps_can_be_given(shapes: BpfObject) -> None:
    """It takes effect, and its descriptor does not stay open behind the object."""
    before = _bpf_descriptors()
    with Map.create(MapType.ARRAY, key_size=4, value_size=16, max_entries=3) as template:
        shapes.maps["arrays"].set_inner(template)
        shapes.load()
        with shapes.map("arrays") as arrays:
            arrays[1] = template
            assert arrays[1] == template.info.id
    shapes.close()
    assert _bpf_descriptors() == before


@pytest.mark.root
def test_a_refused_program_comes_with_the_verifiers_log(compiled: Compile) -> None:
    """The message names program and reason in a line; the whole log is kept beside it."""
    with (
        BpfObject.open(compiled("refused"), name="mine") as opened,
        pytest.raises(VerifierError) as caught,
    ):
        opened.load()
    message = str(caught.value)
    assert "careless of mine" in message
    assert "invalid mem access" in message
    assert "\n" not in message
    assert "processed" in caught.value.log
    assert caught.value.log.count("\n") > 3


@pytest.mark.root
def test_only_the_refused_program_is_refused(compiled: Compile) -> None:
    """Without it the object loads: the error was of that program."""
    with BpfObject.open(compiled("refused")) as opened:
        opened.programs["careless"].set_autoload(False)
        opened.load()
        opened.program("careful").close()


@pytest.mark.root
def test_without_rights_it_says_so(compiled: Compile) -> None:
    """A user without capabilities gets PermissionDenied with the way out."""
    raw = compiled("shapes").read_bytes()

    def load() -> None:
        with BpfObject.open(raw, name="shapes") as opened:
            opened.load()

    words = as_nobody(load)
    assert words.startswith("PermissionDenied: can't load shapes: Operation not permitted")
    assert "CAP_BPF" in words


def test_no_object_is_an_error_with_its_name(tmp_path: Path) -> None:
    """A file of other octets is named, and nothing reaches stderr."""
    path = tmp_path / "text.bpf.o"
    path.write_bytes(b"not an object")
    with pytest.raises(KernelError, match=r"text\.bpf\.o is no BPF object"):
        BpfObject.open(path)


def test_an_object_without_btf_is_an_error(tmp_path: Path) -> None:
    """It has no types to read; that is told, with the way out."""
    source = tmp_path / "bare.bpf.c"
    source.write_text('int bare(void *c) __attribute__((section("xdp"), used));\n'
                      "int bare(void *c) { (void)c; return 2; }\n")  # fmt: skip
    compile_object(source, tmp_path / "bare.bpf.o", ["-g0"])
    with pytest.raises(KernelError, match="no BTF") as caught:
        BpfObject.open(tmp_path / "bare.bpf.o")
    assert caught.value.hint is not None


def test_a_closed_object_is_told_apart(shapes: BpfObject) -> None:
    """Use after close is an error and no crash; closing twice is none."""
    shapes.close()
    shapes.close()
    for use in (shapes.load, lambda: shapes.map("cells"), lambda: shapes.program("drop")):
        with pytest.raises(KernelError, match=r"closed|not loaded"):
            use()


@pytest.mark.root
def test_handles_outlive_their_object(shapes: BpfObject) -> None:
    """A map and a program work on when the object is closed."""
    shapes.load()
    with shapes.map("points") as points, shapes.program("drop") as program:
        shapes.close()
        assert len(points) == 0
        assert program.test_run(FRAME).retval == XDP_DROP


@pytest.mark.root
def test_names_that_are_not_there_are_told(loaded: BpfObject) -> None:
    """Map and program of wrong names."""
    with pytest.raises(NotFoundError, match="no map 'nonesuch'"):
        loaded.map("nonesuch")
    with pytest.raises(NotFoundError, match="no program 'nonesuch'"):
        loaded.program("nonesuch")


def _bpf_descriptors() -> int:
    links = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(each.readlink()))
        except OSError:
            continue
    return sum("bpf" in link for link in links)
