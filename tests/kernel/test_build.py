from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hatch_build
from hatch_build import BuildError

SOURCE = Path(__file__).parent / "bpf" / "adder.bpf.c"


def fake_clang(folder: Path, version: str) -> str:
    """A program that says that it is a clang of this version, and can do nothing else."""
    path = folder / "clang"
    path.write_text(f"#!/bin/sh\necho 'Debian clang version {version}'\n", encoding="ascii")
    path.chmod(0o755)
    return str(path)


def test_an_old_clang_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clang before 16 drops what kptrs need: the error names it and the version that works."""
    monkeypatch.setenv(hatch_build.CLANG_VARIABLE, fake_clang(tmp_path, "14.0.6"))
    with pytest.raises(BuildError, match=r"clang is too old: clang 16 or later"):
        hatch_build.compiler()


def test_a_newer_clang_is_taken_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a clang is asked for, it is what runs, without the system's headers."""
    asked = fake_clang(tmp_path, "16.0.6 (19~deb12u1)")
    monkeypatch.setenv(hatch_build.CLANG_VARIABLE, asked)
    command = hatch_build.compiler()
    assert command[0] == asked
    assert "-nostdinc" in command


def test_a_clang_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable and what it says."""
    monkeypatch.setenv(hatch_build.CLANG_VARIABLE, "/nowhere/clang")
    with pytest.raises(BuildError, match="SOCKWAY_BPF_CLANG=/nowhere/clang can't be run"):
        hatch_build.compiler()


def test_without_being_asked_it_is_zigs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable asks for nothing."""
    monkeypatch.setenv(hatch_build.CLANG_VARIABLE, "")
    assert hatch_build.compiler()[:4] == [sys.executable, "-m", "ziglang", "cc"]


def test_compiling_twice_gives_the_same_octets(tmp_path: Path) -> None:
    """An object depends on its source and the compiler alone, and is for BPF."""
    first, second = tmp_path / "first" / "a.bpf.o", tmp_path / "second" / "a.bpf.o"
    for target in (first, second):
        hatch_build.compile_object(SOURCE, target)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[18:20] == (247).to_bytes(2, "little")  # EM_BPF


def test_a_warning_is_an_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    """The compiler's words are in the message; the object of before stays, and nothing else."""
    source, target = tmp_path / "bad.bpf.c", tmp_path / "out" / "bad.bpf.o"
    source.write_text("int unused(int number) { return 0; }\n", encoding="ascii")
    target.parent.mkdir()
    target.write_bytes(b"before")
    with pytest.raises(BuildError, match=r"bad\.bpf\.c does not compile:\n(.|\n)*unused parameter"):
        hatch_build.compile_object(source, target)
    assert [path.read_bytes() for path in target.parent.iterdir()] == [b"before"]


def test_only_what_is_older_than_its_sources_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second build does nothing; a header that changed makes all objects anew."""
    sources, compiled = tmp_path / "bpf", []
    sources.mkdir()
    (sources / "one.bpf.c").write_text("", encoding="ascii")
    header = sources / "shared.h"
    header.write_text("", encoding="ascii")

    def remember(source: Path, target: Path) -> None:
        compiled.append(source.name)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(b"")

    monkeypatch.setattr(hatch_build, "SOURCES", sources)
    monkeypatch.setattr(hatch_build, "OBJECTS", tmp_path / "objects")
    monkeypatch.setattr(hatch_build, "compile_object", remember)
    for _ in range(2):
        assert [path.name for path in hatch_build.compile_all()] == ["one.bpf.o"]
    assert compiled == ["one.bpf.c"]
    now = (tmp_path / "objects" / "one.bpf.o").stat().st_mtime + 1
    os.utime(header, (now, now))
    hatch_build.compile_all()
    assert compiled == ["one.bpf.c"] * 2


def test_the_binding_imports_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generated module has every declaration, and needs neither libbpf nor a C parser."""
    target = tmp_path / "_made.py"
    monkeypatch.setattr(hatch_build, "BINDING", target)
    assert hatch_build.generate_binding() == target
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import _made\n"
        "assert _made.ffi.sizeof('struct test_run_opts') == 80\n"
        "print('pycparser' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "False\n"
