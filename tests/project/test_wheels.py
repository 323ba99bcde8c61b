"""The wheels of all processors, built on this one machine, and what installers make of them."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from packaging import _manylinux, _musllinux
from packaging.tags import Tag, sys_tags
from packaging.utils import parse_wheel_filename

import hatch_build
from sockway.kernel.btf import FWD, Types

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "sockway/wire/compiled/maglev.so"
NATIVE = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
OTHERS = ("armv7l", "i686", "ppc64le", "riscv64")


def build(tree: Path, where: Path, kind: str = "wheel", machine: str = "") -> Path:
    """Build a distribution of a source tree with no cache; return its file."""
    where.mkdir(parents=True, exist_ok=True)
    cache = str(where / "cache")
    caches = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(where / "dist")],
        cwd=tree,
        env=os.environ | caches | {hatch_build.MACHINE_VARIABLE: machine},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (where / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this tree."""
    return build(ROOT, tmp_path_factory.mktemp("source"), kind="sdist")


@pytest.fixture(scope="module")
def tree(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked: wheels are built from it, not from a used tree."""
    return unpack(source, tmp_path_factory.mktemp("tree"))


def unpack(source: Path, folder: Path) -> Path:
    """Unpack a source distribution; return the tree that is in it."""
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


@pytest.fixture(scope="module")
def wheels(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel for each processor, one after another from one tree."""
    folder = tmp_path_factory.mktemp("wheels")
    return {
        machine: build(tree, folder / machine, machine=machine) for machine in (*NATIVE, *OTHERS)
    }


def platforms(wheel: Path) -> set[str]:
    """The platforms that a wheel's name promises."""
    return {tag.platform for tag in parse_wheel_filename(wheel.name)[3]}


def objects(wheel: Path) -> dict[str, bytes]:
    """The BPF objects in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".bpf.o")}


def test_a_wheel_is_the_same_from_any_folder(
    source: Path, wheels: dict[str, Path], tmp_path: Path
) -> None:
    """One source is one wheel, to the byte: `apply` takes it for the same build."""
    elsewhere = unpack(source, tmp_path / "deeper" / "down")
    again = build(elsewhere, tmp_path / "built", machine="x86_64")
    assert again.name == wheels["x86_64"].name
    differing = [
        name for name, data in objects(again).items() if data != objects(wheels["x86_64"])[name]
    ]
    assert differing == []
    assert digest(again) == digest(wheels["x86_64"])


def test_the_source_distribution_has_nothing_compiled(source: Path) -> None:
    """What is built from it is built from its sources, by whoever has it."""
    with tarfile.open(source) as archive:
        names = archive.getnames()
    made = (".o", ".so", f"/{hatch_build.BINDING.name}")
    assert [name for name in names if name.endswith(made)] == []


def test_no_object_names_a_folder_of_this_machine(tree: Path, wheels: dict[str, Path]) -> None:
    """Line information has paths inside the project, not where it lies or where zig is."""
    folders = [str(tree).encode(), str(hatch_build.zig_directory()).encode(), b"/tmp/", b"/home/"]
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith((".o", ".so")):
                    assert [f for f in folders if f in archive.read(name)] == [], name
    assert any(b"bpf/balancer.bpf.c" in data for data in objects(wheels["x86_64"]).values())


def digest(wheel: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_all_wheels_have_the_same_objects(wheels: dict[str, Path]) -> None:
    """BPF is one processor, whatever runs it."""
    first = objects(wheels["x86_64"])
    assert len(first) == len(list((ROOT / "bpf").glob("*.bpf.c")))
    assert [machine for machine, wheel in wheels.items() if objects(wheel) != first] == []


def test_headers_of_no_processor_change_an_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's headers are x86-64's for all wheels: no program depends on it."""
    compiled = []
    for processor in ("x86-linux-any", "aarch64-linux-any", "powerpc-linux-any"):
        monkeypatch.setattr(hatch_build, "PROCESSOR_HEADERS", processor)
        made = {}
        for path in hatch_build.SOURCES.glob("*.bpf.c"):
            target = tmp_path / processor / path.name
            hatch_build.compile_object(path, target)
            made[path.name] = target.read_bytes()
        compiled.append(made)
    assert compiled[0] == compiled[1] == compiled[2]


@pytest.mark.parametrize("machine", NATIVE)
def test_the_extension_needs_no_library(machine: str, wheels: dict[str, Path]) -> None:
    """What makes manylinux and musllinux true at once: no C library is needed, nor any symbol."""
    with zipfile.ZipFile(wheels[machine]) as archive:
        elf = ELFFile(io.BytesIO(archive.read(LIBRARY)))
    assert elf["e_machine"] == NATIVE[machine]
    dynamic, table = (elf.get_section_by_name(name) for name in (".dynamic", ".dynsym"))
    assert isinstance(dynamic, DynamicSection)
    assert isinstance(table, SymbolTableSection)
    assert {"DT_NEEDED", "DT_RPATH"} & {tag.entry.d_tag for tag in dynamic.iter_tags()} == set()
    symbols = list(table.iter_symbols())[1:]
    assert [symbol.name for symbol in symbols if symbol["st_shndx"] == "SHN_UNDEF"] == []
    assert {symbol.name for symbol in symbols} == {
        "sockway_history",
        "sockway_maglev",
        "sockway_settle",
    }


@pytest.mark.parametrize("machine", NATIVE)
def test_auditwheel_finds_the_tags_true(machine: str, wheels: dict[str, Path]) -> None:
    """The program that judges wheels for PyPI finds nothing from outside in it."""
    done = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheels[machine])],
        check=False,
        capture_output=True,
        text=True,
    )
    words = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stderr
    assert "references no external versioned symbols" in words
    found = re.search(rf'the following platform tag: "manylinux_2_(\d+)_{machine}"', words)
    assert found is not None, words
    assert int(found[1]) <= 17


@pytest.mark.parametrize("machine", [*NATIVE, *OTHERS])
def test_pip_takes_a_wheel_on_glibc_and_on_musl(
    machine: str, wheels: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian 12's glibc and Alpine's musl accept one of the platforms in the name."""
    promised = platforms(wheels[machine])
    monkeypatch.setattr(_manylinux, "_have_compatible_abi", lambda *_: True)
    monkeypatch.setattr(_manylinux, "_get_glibc_version", lambda: (2, 36))
    assert promised & set(_manylinux.platform_tags([machine]))
    monkeypatch.setattr(_musllinux, "_get_musl_version", lambda _: _musllinux._MuslVersion(1, 2))
    assert promised & set(_musllinux.platform_tags([machine]))


def test_this_python_takes_the_wheel_of_this_machine(wheels: dict[str, Path]) -> None:
    """And no other's."""
    here = set(sys_tags())

    def taken(machine: str) -> bool:
        tags: frozenset[Tag] = parse_wheel_filename(wheels[machine].name)[3]
        return bool(tags & here)

    assert [machine for machine in wheels if taken(machine)] == [hatch_build.target_machine()]


@pytest.mark.parametrize("machine", OTHERS)
def test_other_processors_get_a_wheel_without_the_extension(
    machine: str, wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing in it is of a processor but BPF; rings are built by Python and are the same."""
    with zipfile.ZipFile(wheels[machine]) as archive:
        archive.extractall(tmp_path)  # noqa: S202 - it was built here
    foreign = [
        path.name
        for path in tmp_path.rglob("*")
        if path.is_file() and path.read_bytes()[:4] == b"\x7fELF" and path.suffix != ".o"
    ]
    assert foreign == []
    script = (
        "from sockway.wire import maglev\n"
        "members = [maglev.Member(bytes([n]), n) for n in range(1, 9)]\n"
        "print(maglev.__file__, maglev.is_compiled(), sum(i * s for i, s in "
        "enumerate(maglev.build(members, 65537))))"
    )
    answers = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | environment,
            cwd=tmp_path.parent,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for environment in ({}, {"PYTHONPATH": str(tmp_path)})
    ]
    assert answers[1][0].startswith(str(tmp_path))
    assert [answer[1] for answer in answers] == ["True", "False"]
    assert answers[0][2] == answers[1][2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a build, with no processor asked for."""
    monkeypatch.delenv(hatch_build.MACHINE_VARIABLE, raising=False)
    return monkeypatch


@pytest.mark.parametrize("machine", ["s390x", "ppc64", "sparc64"])
def test_a_big_endian_build_ends_with_one_sentence(machine: str, tmp_path: Path) -> None:
    """There is no wheel that could not load, and pip's output has no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w",
         str(tmp_path), str(ROOT)],
        env=os.environ | {hatch_build.MACHINE_VARIABLE: machine},
        check=False,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode
    words = done.stdout + done.stderr
    assert f"{machine} is big-endian" in words
    assert "Traceback" not in words
    assert list(tmp_path.iterdir()) == []


def test_a_big_endian_machine_is_refused_by_itself(asked: pytest.MonkeyPatch) -> None:
    """Where nothing is asked for, what the build runs on is what it is for."""
    asked.setattr(platform, "machine", lambda: "mips64")
    with pytest.raises(hatch_build.BuildError, match="mips64 is big-endian"):
        hatch_build.target_machine()
    asked.setattr(platform, "machine", lambda: "strange")
    asked.setattr(sys, "byteorder", "big")
    with pytest.raises(hatch_build.BuildError, match="strange is big-endian"):
        hatch_build.target_machine()


def test_a_processor_that_nobody_knows_is_refused(asked: pytest.MonkeyPatch) -> None:
    """A wheel with a wrong name would be installed nowhere: the error names the right ones."""
    asked.setenv(hatch_build.MACHINE_VARIABLE, "aarch65")
    with pytest.raises(hatch_build.BuildError, match=r"aarch65: .*aarch64, armv7l"):
        hatch_build.target_machine()


@pytest.mark.parametrize(
    ("said", "bits", "machine"),
    [
        ("x86_64", 64, "x86_64"),
        ("amd64", 64, "x86_64"),
        ("arm64", 64, "aarch64"),
        ("x86_64", 32, "i686"),
        ("aarch64", 32, "armv7l"),
        ("armv8l", 32, "armv7l"),
        ("i586", 32, "i686"),
        ("mips64el", 64, "mips64el"),
    ],
)
def test_the_machine_is_that_of_python(
    said: str, bits: int, machine: str, asked: pytest.MonkeyPatch
) -> None:
    """A 32-bit Python on a 64-bit kernel can't load a 64-bit library."""
    asked.setattr(platform, "machine", lambda: said)
    asked.setattr(sys, "maxsize", 2 ** (bits - 1) - 1)
    assert hatch_build.target_machine() == machine


def test_a_processor_without_a_table_gets_the_plain_tag() -> None:
    """Nobody promises anything for it: the wheel is for the machine that built it."""
    assert hatch_build.wheel_tag("mips64el") == "py3-none-linux_mips64el"
    assert hatch_build.wheel_tag("x86_64") == (
        "py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.musllinux_1_1_x86_64"
    )


def test_objects_have_one_forward_declaration_at_most(wheels: dict[str, Path]) -> None:
    """Clang orders them by addresses in its memory: of two, neither comes first for certain."""
    for name, data in objects(wheels["x86_64"]).items():
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".BTF")
        assert section is not None
        declared = [each.name for each in Types(section.data())._types if each.kind == FWD]
        assert len(declared) <= 1, f"{name}: use DESCRIBE_TYPE for one of {declared}"
