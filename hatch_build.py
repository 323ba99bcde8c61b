"""Build steps of the package: the data plane's objects and the libbpf binding.

`pip install .` runs them through hatchling; `python hatch_build.py` runs them in place, for a
source tree that is used as it is. The BPF C is compiled with the clang inside the PyPI package
`ziglang`, which has the kernel's UAPI headers too, so no system compiler is needed. Another clang
(16 or later) is used where SOCKWAY_BPF_CLANG names one.

Processors. The objects are the same for all: BPF of little-endian kernels. The one thing in a wheel
that is of a processor is the extension made from `native/`. It uses no C library: one file serves
glibc and musl, and clang makes that of another processor as easily as this one's: SOCKWAY_MACHINE
says which processor the wheel is for. It is compiled for the two that are tested. The others get
the same wheel without it, and their own name on it: `any` would promise macOS and big-endian
machines, which can't load the objects.

Bytes. Line information has paths, and `apply` compares builds by the bytes of their objects. So
paths are cut to those inside the project: one source gives one wheel, from whatever folder.
Debugging sections other than BTF stay: without them a wheel would be 130 of 820 KB smaller, but
nothing in ziglang can take them out.
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
# Here and not in the package: the wheel of one processor must not get the library of another.
BUILT = ROOT / "build" / "native"
BINDING = ROOT / "src" / "sockway" / "kernel" / "_libbpf.py"
DECLARATIONS = ROOT / "src" / "sockway" / "kernel" / "libbpf.cdef.h"
CLANG_VARIABLE = "SOCKWAY_BPF_CLANG"
MACHINE_VARIABLE = "SOCKWAY_MACHINE"
LEAST_CLANG = 16
# Whose headers BPF C is compiled with. It makes no difference, which a test checks: UAPI headers
# have to come from some processor.
PROCESSOR_HEADERS = "x86-linux-any"
# Processors that the extension is compiled for: those whose wheels are tested.
NATIVE_MACHINES = ("x86_64", "aarch64")
# Little-endian processors, and the oldest glibc that a wheel's name can promise for each.
OLDEST_GLIBC = {
    "aarch64": "2_17",
    "armv7l": "2_17",
    "i686": "2_17",
    "loongarch64": "2_36",
    "ppc64le": "2_17",
    "riscv64": "2_31",
    "x86_64": "2_17",
}
BIG_ENDIAN = frozenset({"m68k", "mips", "mips64", "parisc", "ppc", "ppc64", "s390x", "sparc64"})
# A 32-bit Python on a 64-bit kernel hears the kernel's name.
NAMES_32_BIT = {"x86_64": "i686", "aarch64": "armv7l"}
NAMES = {
    "amd64": "x86_64", "arm64": "aarch64", "armv8l": "armv7l",
    "i386": "i686", "i486": "i686", "i586": "i686",
}  # fmt: skip
FLAGS = (
    "-g", "-O2", "-mcpu=v3", "-Wall", "-Wextra", "-Werror",
    "-fno-asynchronous-unwind-tables", "-fno-ident",
)  # fmt: skip


class BuildError(Exception):
    """A build step can't be done; the message says what is missing."""


def target_machine() -> str:
    """Return the processor that the wheel is for: SOCKWAY_MACHINE, or that of this Python.

    Raises:
        BuildError: it is big-endian, or SOCKWAY_MACHINE names none that is known.

    """
    asked = os.environ.get(MACHINE_VARIABLE)
    said = asked or platform.machine()
    machine = NAMES.get(said, said)
    if not asked and sys.maxsize < 2**32:
        machine = NAMES_32_BIT.get(machine, machine)
    if machine in BIG_ENDIAN or (not asked and sys.byteorder == "big"):
        message = f"{said} is big-endian: Sockway runs on little-endian processors only"
        raise BuildError(message)
    if asked and machine not in OLDEST_GLIBC:
        known = ", ".join(sorted(OLDEST_GLIBC))
        message = f"{MACHINE_VARIABLE}={asked}: there is no such processor; known are {known}"
        raise BuildError(message)
    return machine


def wheel_tag(machine: str) -> str:
    """Return the tag of a wheel for this processor: any Python 3, glibc and musl."""
    if machine not in OLDEST_GLIBC:
        return f"py3-none-linux_{machine}"
    glibc = OLDEST_GLIBC[machine]
    platforms = [f"manylinux_{glibc}_{machine}", f"musllinux_1_1_{machine}"]
    if glibc == "2_17":  # its older name, for older installers
        platforms.insert(1, f"manylinux2014_{machine}")
    return f"py3-none-{'.'.join(platforms)}"


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
        for folder in ("any-linux-any", PROCESSOR_HEADERS)
        for flag in ("-isystem", str(headers / folder))
    ]


def short_paths(source: Path) -> list[str]:
    """Flags that cut the paths in line information to what is the same on any machine."""
    # Of several that match the last one counts: zig may lie inside the project, in out/venv.
    folders = {
        source.resolve().parent: ".", ROOT: ".", zig_directory(): "ziglang",
    }  # fmt: skip
    return [
        "-fdebug-compilation-dir=.",
        *(f"-ffile-prefix-map={folder}={name}" for folder, name in folders.items()),
    ]


def compile_object(source: Path, target: Path, flags: Sequence[str] = ()) -> None:
    """Compile one BPF C file to an object with BTF.

    Raises:
        BuildError: the compiler refused it; the message has its words.

    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    command = [
        *compiler(), *FLAGS, *short_paths(source), *kernel_headers(), f"-I{SOURCES}", *flags,
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


def compile_native(machine: str, folder: Path) -> list[Path]:
    """Compile the loops that are too slow in Python into `folder`; see `native/`.

    They use no library and no feature of a certain C library, so one target serves all.

    Returns:
        The libraries; none for a processor that has to do with Python.

    Raises:
        BuildError: the compiler refused one.

    """
    if machine not in NATIVE_MACHINES:
        return []
    built = []
    for source in sorted(NATIVE.glob("*.c")):
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{source.stem}.so"
        newest = max(source.stat().st_mtime, Path(__file__).stat().st_mtime)
        if not target.exists() or target.stat().st_mtime < newest:
            fresh = target.with_name(f".{target.name}.{os.getpid()}")
            command = [
                sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-musl",
                "-shared", "-nostdlib", "-fPIC", "-O2", "-s", "-Wall", "-Wextra", "-Werror",
                str(source), "-o", str(fresh),
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
        # Not beside the modules: the library is none of Python's, and would be taken for one.
        libraries = compile_native(target_machine(), LIBRARIES)
        built = [*compile_all(), *libraries, generate_binding()]
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
            if self.target_name == "sdist":
                return
            try:
                machine = target_machine()
                build_data["pure_python"] = False
                build_data["tag"] = wheel_tag(machine)
                if version == "editable":  # used where it lies
                    compile_native(machine, LIBRARIES)
                else:
                    for path in compile_native(machine, BUILT / machine):
                        inside = LIBRARIES.relative_to(ROOT / "src") / path.name
                        build_data["force_include"][str(path)] = str(inside)
                built = [*compile_all(), generate_binding()]
            except BuildError as error:
                self.app.abort(f"hatch_build: {error}")
            build_data["artifacts"].extend(str(path.relative_to(ROOT)) for path in built)


if __name__ == "__main__":
    sys.exit(main())
