"""An arm64 machine: the wheel that was built on this one, on Debian's kernel and Python for arm64.

Nothing of this machine runs in it: the root is unpacked from Debian's packages, Sockway is the
aarch64 wheel, its requirements are their authors' aarch64 wheels. The whole machine is emulated.
Three jobs, each in a boot of its own, so that one that fails hides no other: doctor, the load of
each program by itself, and a release under load.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.machines.machine import Machine, Result
from tests.machines.packages import Kernel, MachineError, Packages

HERE = Path(__file__).parent
PACKAGES = (
    "base-files", "bash", "busybox-static", "coreutils", "dash", "grep", "hostname", "iproute2",
    "kmod", "libbpf1", "mount", "procps", "python3", "sed", "util-linux",
)  # fmt: skip
SITE = Path("opt/sockway")
"""Where Sockway and its requirements lie in the machine's root."""


@dataclass(frozen=True)
class Job:
    """What runs in a machine: its name, its words, and the seconds that it may take."""

    name: str
    words: tuple[str, ...]
    seconds: float


JOBS = (
    Job("doctor", ("-m", "sockway", "doctor"), 900),
    Job("programs", ("/run/results/programs.py",), 900),
    Job("release", ("/run/results/release.py",), 1500),
)


def python_of(root: Path) -> str:
    """Return the version of a root's Python, as `3.13`."""
    found = re.fullmatch(r"python(\d+\.\d+)", str((root / "usr/bin/python3").readlink()))
    if found is None:
        raise MachineError(f"{root} has no Python")
    return found[1]


def install(wheel: Path, root: Path) -> None:
    """Put the wheel, its requirements and uvicorn into a root, without running anything of it.

    Raises:
        MachineError: pip has no wheel of a requirement for this processor.

    """
    site, python = root / SITE, python_of(root)
    shutil.rmtree(site, ignore_errors=True)
    platforms = [f"--platform={name}_aarch64" for name in ("manylinux_2_28", "manylinux2014")]
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "-q", "--target", str(site), *platforms,
            "--only-binary=:all:", "--implementation=cp", f"--python-version={python}",
            str(wheel), "uvicorn",
        ],
        check=False,
        capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode:
        raise MachineError(f"pip can't install {wheel.name}: {done.stderr.strip()}")
    compile_ahead(root, python)


def compile_ahead(root: Path, python: str) -> None:
    """Compile a root's modules by this machine's Python of the same version, if it has one.

    Bytecode is the same on all processors, and an emulated one takes minutes for it.
    """
    folders = [str(root / SITE), str(root / "usr" / "lib" / f"python{python}")]
    command = [f"python{python}", "-m", "compileall", "-q", "-s", str(root), "-p", "/", *folders]
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(command, check=False, capture_output=True)


def placed(kernel: Kernel, root: Path) -> Kernel:
    """Return the kernel with its modules inside the root, where the machine can see them."""
    inside = Kernel(kernel.release, root / "opt" / "kernel")
    if not inside.image.exists():
        shutil.rmtree(inside.root, ignore_errors=True)
        shutil.copytree(kernel.root, inside.root, symlinks=True)
    return inside


def run(machine: Machine, job: Job, results: Path) -> Result:
    """Run a job in the machine; its files are left in `results`."""
    results.mkdir(parents=True, exist_ok=True)
    for name in ("programs.py", "release.py"):
        shutil.copy(HERE / name, results)
    return machine.run(
        ["/usr/bin/python3", *job.words],
        folder=Path("/root"),
        results=results,
        environment={
            "PYTHONPATH": f"/{SITE}",
            "COLUMNS": "120",
        },
        timeout=job.seconds,
    )


def told(job: Job, result: Result) -> str:
    """Return what a job found, in a line."""
    if job.name == "doctor" and result.output.startswith("Linux"):
        answers = Counter(line.split()[0] for line in result.output.splitlines() if line.strip())
        lacking = answers["no"] + answers["NO"]
        return f"{answers['yes']} features are there, {lacking} are not"
    if job.name == "programs" and result.output.startswith("["):
        rows = json.loads(result.output)
        refused = [row for row in rows if "error" in row]
        words = "".join(f"\n    {row['program']}: {row['error']}" for row in refused)
        return f"{len(rows) - len(refused)} of {len(rows)} programs load{words}"
    return result.output.strip().splitlines()[-1] if result.output.strip() else "no output"


def named(name: str) -> Job:
    """Return the job with a name.

    Raises:
        argparse.ArgumentTypeError: no job has this name.

    """
    for job in JOBS:
        if job.name == name:
            return job
    names = ", ".join(job.name for job in JOBS)
    # Not `choices`: Python 3.11 holds them against the empty list, too.
    raise argparse.ArgumentTypeError(f"no job is named {name!r}; there are {names}")


def main() -> int:
    """Run the jobs that are asked for; the status tells whether all passed."""
    parser = argparse.ArgumentParser(prog="arm64", description=__doc__)
    parser.add_argument("--wheel", type=Path, required=True, help="the aarch64 wheel")
    parser.add_argument("--cache", type=Path, required=True, help="for packages and the root")
    parser.add_argument("--output", type=Path, required=True, help="for what the machine says")
    parser.add_argument("--kernel", default="6.12", help="beginning of its version")
    names = ", ".join(job.name for job in JOBS)
    parser.add_argument("jobs", nargs="*", type=named, help=f"{names}; all unless named")
    asked = parser.parse_args()
    jobs = [job for job in JOBS if not asked.jobs or job in asked.jobs]
    try:
        packages = Packages(asked.cache, "arm64")
        root = packages.root(PACKAGES)
        kernel = placed(packages.kernel(asked.kernel), root)
        install(asked.wheel, root)
        machine = Machine(kernel, root, "arm64", 2048, busybox=root / "usr" / "bin" / "busybox")
        failed = False
        for job in jobs:
            result = run(machine, job, asked.output / job.name)
            failed |= bool(result.status)
            verdict = "failed" if result.status else "passed"
            seconds = f"{result.seconds:.0f} s"
            sys.stdout.write(f"arm64 {kernel.release}: {job.name} {verdict} after {seconds}: ")
            sys.stdout.write(told(job, result) + "\n")
            sys.stdout.flush()
    except MachineError as error:
        sys.exit(f"arm64: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
