"""Sockway on other kernels: `make kernels`.

Boots each kernel in a virtual machine of its own, two at a time, and runs the jobs there: the
doctor, the load of every program by itself, the tests whose outcome depends on the kernel. Prints
each outcome when it is there, then a table; writes all as JSON. What the doctor found to be done
in an older way is held against the table in docs/reference/kernels.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from sockway.lab import patience
from tests.machines import machine, page
from tests.machines.jobs import JOBS, USUAL, Outcome, output_of
from tests.machines.machine import Machine
from tests.machines.packages import Kernel, MachineError, Packages

CHECKOUT = Path(__file__).resolve().parents[2]
DEFAULT = ("6.1", "6.12", "newest")
AT_ONCE = 2
BOOT_SECONDS = 300
_LINES = 25


@dataclass
class Run:
    """What one kernel's machine has done so far."""

    kernel: Kernel
    jobs: tuple[str, ...]
    results: Path
    outcomes: list[Outcome] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all jobs were done, and none failed."""
        done = {outcome.job for outcome in self.outcomes if outcome.status == 0}
        return not self.error and done == set(self.jobs)

    def output(self, job: str) -> str:
        """Return what a job wrote."""
        path = output_of(self.results, job)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def records(self, job: str) -> list[dict[str, Any]]:
        """Return the JSON list that a job wrote; empty if it was not asked, or wrote none."""
        text = self.output(job)
        try:
            found = json.loads(text[text.index("[") : text.rindex("]") + 1])
        except ValueError:
            found = []
        if job in self.jobs and not found and not self.error:
            self.error = f"{job} wrote no list of JSON: {text.strip()[-200:]}"
        return found if isinstance(found, list) else []


def read_outcomes(results: Path) -> list[Outcome]:
    """Return the outcomes that a machine has written so far."""
    path = results / "outcomes"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [Outcome(**json.loads(line)) for line in lines if line.endswith("\n")]


def _say(words: str) -> None:
    sys.stderr.write(f"kernels: {words}\n")
    sys.stderr.flush()


def _watch(run: Run, end: threading.Event) -> None:
    """Tell each outcome as soon as the machine has written it."""
    told = 0
    while not end.wait(1) or told < len(read_outcomes(run.results)):
        for outcome in read_outcomes(run.results)[told:]:
            told += 1
            how = {0: "passed", None: "did not end in time"}.get(
                outcome.status, f"failed with status {outcome.status}"
            )
            _say(f"{run.kernel.release}: {outcome.job} {how} in {outcome.seconds:.0f} s")


def run_machine(run: Run) -> Run:
    """Boot the kernel, have it run its jobs, and read what came of them."""
    shutil.rmtree(run.results, ignore_errors=True)
    run.results.mkdir(parents=True)
    end = threading.Event()
    watcher = threading.Thread(target=_watch, args=(run, end))
    watcher.start()
    began = time.monotonic()
    try:
        Machine(run.kernel).run(
            [sys.executable, "-m", "tests.machines.jobs", "/run/results", *run.jobs],
            folder=CHECKOUT,
            results=run.results,
            environment={
                "PYTHONDONTWRITEBYTECODE": "1",
                "SOCKWAY_IN_MACHINE": "1",
                patience.VARIABLE: "20",
            },
            timeout=BOOT_SECONDS + sum(JOBS[job].timeout for job in run.jobs),
        )
    except MachineError as error:
        run.error = str(error)
    finally:
        end.set()
        watcher.join()
    run.seconds = round(time.monotonic() - began, 1)
    run.outcomes = read_outcomes(run.results)
    return run


def failures(run: Run) -> Iterator[str]:
    """Tell what went wrong in a machine, with the end of what was written of it."""
    if run.error:
        yield f"{run.kernel.release}: {run.error}"
    for outcome in run.outcomes:
        if outcome.status != 0:
            tail = "\n    ".join(run.output(outcome.job).strip().splitlines()[-_LINES:])
            yield f"{run.kernel.release}: {outcome.job} failed:\n    {tail}"
    for row in run.records("programs"):
        if row.get("verified", 0) > page.MOST_VERIFIED:
            yield (
                f"{run.kernel.release}: the verifier processed {row['verified']:,} instructions of "
                f"{row['program']}; {page.MOST_VERIFIED:,} are allowed, of 1,000,000"
            )


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make kernels", description="Sockway on other kernels.")
    parser.add_argument(
        "kernels", nargs="*", default=list(DEFAULT), metavar="KERNEL",
        help="a version as far as it matters (6.1), a release (6.1.0-56-amd64), or newest",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", nargs="+", default=list(USUAL), choices=list(JOBS), metavar="JOB",
        help=f"what each runs: {', '.join(JOBS)}",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, default=Path("out/machines"), help="of kernels")
    parser.add_argument("--output", type=Path, default=Path("out/kernels"), help="of results")
    parser.add_argument("--write", action="store_true", help="write the table into the docs")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser.parse_args(words)


def _prepare(asked: argparse.Namespace) -> list[Run]:
    packages = Packages(asked.cache.resolve())
    runs = []
    for wanted in asked.kernels:
        _say(f"getting Linux {wanted}")
        kernel = packages.kernel(wanted)
        results = asked.output.resolve() / kernel.release
        runs.append(Run(kernel, tuple(dict.fromkeys(asked.jobs)), results))
    return runs


def _end(_number: int, _frame: object) -> NoReturn:
    raise SystemExit("kernels: ended by a signal")


def main(words: Sequence[str] | None = None) -> int:
    """Run the matrix; the status tells whether every job passed on every kernel."""
    asked = _arguments(sys.argv[1:] if words is None else words)
    try:
        runs = _prepare(asked)
    except MachineError as error:
        sys.stderr.write(f"kernels: {error}\n")
        return 2
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _end)
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        runs = list(pool.map(run_machine, runs))
    except BaseException:
        # Machines end with this process; those that have not begun shall not begin.
        machine.end_all()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    entries = [page.Entry.of(run.kernel.release, run.records("doctor"), run.records("programs"))
               for run in runs if run.records("doctor")]  # fmt: skip
    wrong = [line for run in runs for line in failures(run)]
    if asked.write:
        page.write(CHECKOUT / page.PLACE, entries)
    else:
        wrong += [line for entry in entries for line in page.differences(CHECKOUT, entry)]
    record = {
        "machine": platform.release(),
        "seconds": round(time.monotonic() - began, 1),
        "kernels": [
            {
                "release": run.kernel.release,
                "ok": run.ok,
                "seconds": run.seconds,
                "jobs": [outcome.__dict__ for outcome in run.outcomes],
                "error": run.error,
            }
            for run in runs
        ],
    }
    asked.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    (asked.output / "kernels.json").write_text(text, encoding="utf-8")
    sys.stdout.write(text if asked.json else page.table(record))
    for line in wrong:
        sys.stderr.write(f"kernels: {line}\n")
    return 1 if wrong or not all(run.ok for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
