"""What a machine is asked to do, and the program that does it there, one job after another.

Python by emulation is some twenty times slower than natively, so the tests here are those whose
outcome depends on the kernel, not those of what is computed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

PYTHON = (sys.executable,)
PYTEST = (
    *PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--fail-on-skip", "--timeout=900",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One command that has to succeed in a machine.

    Args:
        name: what it is called in tables and on the command line.
        command: what runs, in the checkout.
        timeout: seconds by emulation, on a machine that does other things too.

    """

    name: str
    command: tuple[str, ...]
    timeout: float


def _tests(name: str, *what: str, timeout: float = 1500) -> Job:
    return Job(name, (*PYTEST, *what), timeout)


JOBS = {
    job.name: job
    for job in (
        Job("doctor", (*PYTHON, "-m", "sockway", "doctor", "--json"), 300),
        Job("programs", (*PYTHON, "-m", "tests.machines.programs"), 600),
        Job("release", (*PYTHON, "-m", "tests.machines.release"), 900),
        Job("resets", (*PYTHON, "-m", "tests.machines.resets"), 1200),
        Job("netem", (*PYTHON, "-m", "tests.machines.netem"), 1500),
        _tests("network", "tests/network"),
        _tests("kernel", "tests/kernel"),
        _tests(
            "sockets",
            "tests/sockets/test_state.py",
            "tests/sockets/test_tcp_router.py",
        ),
        _tests("balancer", "tests/balancer/test_balancer.py", "tests/balancer/test_attach.py"),
        _tests("backend", "tests/balancer/test_decap.py", "tests/balancer/test_host.py"),
        _tests("stamps", "tests/balancer/test_stamp_sockets.py"),
        Job(
            "experiments",
            (*PYTHON, "-m", "tests.machines.experiments", "/run/results/lab"),
            3600,
        ),
    )
}  # fmt: skip

# Everything but the lab's experiments, which take longer than all else.
USUAL = tuple(name for name in JOBS if name != "experiments")


@dataclass(frozen=True)
class Outcome:
    """How a job ended in the machine."""

    job: str
    status: int | None
    """Exit status; None if it did not end in time."""
    seconds: float


def output_of(results: Path, job: str) -> Path:
    """Return where a job's output lies."""
    return results / f"{job}.out"


def run(job: Job, results: Path) -> Outcome:
    """Run one job here; what it writes goes to a file of its name."""
    began = time.monotonic()
    status: int | None = None
    with output_of(results, job.name).open("wb") as output:
        process = subprocess.Popen(job.command, stdout=output, stderr=subprocess.STDOUT)
        try:
            status = process.wait(job.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return Outcome(job.name, status, round(time.monotonic() - began, 1))


def main() -> int:
    """Run the jobs that are named; write each outcome as a line of JSON when it is there."""
    results = Path(sys.argv[1])
    failed = False
    with (results / "outcomes").open("a", encoding="utf-8") as lines:
        for name in sys.argv[2:]:
            outcome = run(JOBS[name], results)
            failed = failed or outcome.status != 0
            lines.write(json.dumps(asdict(outcome)) + "\n")
            lines.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
