"""Build steps of the package: the data plane's objects and the libbpf binding.

`pip install .` runs them through hatchling; `python hatch_build.py` runs them in place, for a
source tree that is used as it is. The BPF C is compiled with the clang inside the PyPI package
`ziglang`, which has the kernel's UAPI headers too, so no system compiler is needed. Another clang
(16 or later) is used where SOCKWAY_BPF_CLANG names one.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "bpf"
OBJECTS = ROOT / "src" / "sockway" / "kernel" / "objects"
NATIVE = ROOT / "native"
LIBRARIES = ROOT / "src" / "sockway" / "wire" / "compiled"
BINDING = ROOT / "src" / "sockway" / "kernel" / "_libbpf.py"
DECLARATIONS = ROOT / "src" / "sockway" / "kernel" / "libbpf.cdef.h"
CLANG_VARIABLE = "SOCKWAY_BPF_CLANG"
LEAST_CLANG = 16
FLAGS = (
    "-g", "-O2", "-mcpu=v3", "-Wall", "-Wextra", "-Werror",
    "-fno-asynchronous-unwind-tables", "-fno-ident",
)  # fmt: skip


class BuildError(Exception):
    """A build step can't be done; the message says what is missing."""


def zig_directory() -> Path:
    """Where the `ziglang` package is.

    Raises:
        BuildError: it is not installed.

    """
    spec = util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        message = "the package ziglang is not installed: pip install ziglang"
        raise BuildError(message)
    return Path(spec.origin).parent


def compiler() -> list[str]:
    """The command that compiles BPF C: SOCKWAY_BPF_CLANG, or zig's clang.

    Raises:
        BuildError: the clang that was asked for is not there or too old.

    """
    asked = os.environ.get(CLANG_VARIABLE)
    if not asked:
        return [sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding"]
    try:
        words = subprocess.run(
            [asked, "--version"], check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"{CLANG_VARIABLE}={asked} can't be run: {error}"
        raise BuildError(message) from error
    found = re.search(r"version (\d+)", words)
    if found is None or int(found[1]) < LEAST_CLANG:
        message = f"{CLANG_VARIABLE}={asked} is too old: clang {LEAST_CLANG} or later is needed"
        raise BuildError(message)
    return [asked, "-target", "bpfel", "-nostdinc", *_resource_headers(asked)]


def _resource_headers(clang: str) -> list[str]:
    words = subprocess.run(
        [clang, "-print-resource-dir"], check=True, capture_output=True, text=True
    ).stdout
    return ["-isystem", str(Path(words.strip()) / "include")]


def kernel_headers() -> list[str]:
    """Flags for the kernel's UAPI headers, which come with ziglang."""
    headers = zig_directory() / "lib" / "libc" / "include"
    return [
        flag
        for folder in ("any-linux-any", "x86-linux-any")
        for flag in ("-isystem", str(headers / folder))
    ]


def compile_object(source: Path, target: Path, flags: Sequence[str] = ()) -> None:
    """Compile one BPF C file to an object with BTF.

    Raises:
        BuildError: the compiler refused it; the message has its words.

    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    command = [
        *compiler(), *FLAGS, *kernel_headers(), f"-I{SOURCES}", *flags,
        "-c", str(source), "-o", str(fresh),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        fresh.unlink(missing_ok=True)
        message = f"{source.name} does not compile:\n{done.stderr}"
        raise BuildError(message)
    fresh.replace(target)


def compile_all() -> list[Path]:
    """Compile what is newer than its object; return all objects."""
    headers = max(path.stat().st_mtime for path in SOURCES.glob("*.h"))
    objects = []
    for source in sorted(SOURCES.glob("*.bpf.c")):
        target = OBJECTS / source.name.replace(".c", ".o")
        newest = max(headers, source.stat().st_mtime, Path(__file__).stat().st_mtime)
        if not target.exists() or target.stat().st_mtime < newest:
            compile_object(source, target)
        objects.append(target)
    return objects


def compile_native() -> list[Path]:
    """Compile the loops that are too slow in Python, for this machine; see `native/`.

    They use no library and no feature of a certain C library, so one target serves all.

    Raises:
        BuildError: the compiler refused one.

    """
    built = []
    for source in sorted(NATIVE.glob("*.c")):
        # Not beside the modules: it is none of Python's, and would be taken for one.
        LIBRARIES.mkdir(exist_ok=True)
        target = LIBRARIES / f"{source.stem}.so"
        newest = max(source.stat().st_mtime, Path(__file__).stat().st_mtime)
        if not target.exists() or target.stat().st_mtime < newest:
            fresh = target.with_name(f".{target.name}.{os.getpid()}")
            command = [
                sys.executable, "-m", "ziglang", "cc",
                "-target", f"{platform.machine()}-linux-musl", "-shared", "-nostdlib", "-fPIC",
                "-O2", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(fresh),
            ]  # fmt: skip
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                message = f"{source.name} does not compile:\n{done.stderr}"
                raise BuildError(message)
            fresh.replace(target)
        built.append(target)
    return built


def generate_binding() -> Path:
    """Write the out-of-line ABI-mode module for libbpf."""
    import cffi  # noqa: PLC0415 - a build requirement, not needed to compile alone

    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS.read_text(encoding="utf-8"))
    ffi.set_source("sockway.kernel._libbpf", None)
    ffi.emit_python_code(str(BINDING))
    return BINDING


def main() -> int:
    """Build in place."""
    try:
        built = [*compile_all(), *compile_native(), generate_binding()]
    except BuildError as error:
        sys.stderr.write(f"hatch_build: {error}\n")
        return 1
    for path in built:
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run in place, without hatchling
    pass
else:

    class SockwayBuildHook(BuildHookInterface[Any]):
        """Adds the compiled objects and the binding to what hatchling packs."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile and generate before files are gathered.

            The names are relative to the project: hatchling packs ignored files only when told.
            """
            del version
            if self.target_name == "sdist":
                return
            built = [*compile_all(), *compile_native(), generate_binding()]
            # Any Python 3 can load the library, and only this kind of machine.
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{platform.machine()}"
            build_data["artifacts"].extend(str(path.relative_to(ROOT)) for path in built)


if __name__ == "__main__":
    sys.exit(main())
