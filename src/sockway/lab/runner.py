"""A run of experiments: each in a process of its own, bounded; then the report.

An experiment that fails, dies or takes too long is told in the results and does not stop
the others. Whatever it leaves is taken away: labs that were built for it, processes that lost
their parent, control groups, pins and files that have its mark in their names.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from sockway.errors import ConfigError
from sockway.extras import need
from sockway.lab.cpubudget import controllers_as_before
from sockway.lab.experiments import Experiment
from sockway.lab.findings import ExperimentResult, Findings, Results
from sockway.lab.leftovers import sweep
from sockway.lab.marks import RUN_VARIABLE, prefix
from sockway.lab.patience import patient
from sockway.lab.report import machine
from sockway.lab.sandbox import adopt_orphans, end_children

PATIENCE: Final = 20.0
"""Seconds that an experiment has to clear away."""


@dataclass(frozen=True)
class Done:
    """An experiment of a run, done or not."""

    experiment: Experiment
    result: ExperimentResult
    findings: Findings | None


@dataclass(frozen=True)
class Run:
    """How experiments are run."""

    output: Path
    quick: bool
    seed: int

    def command(self, names: Sequence[str]) -> str:
        """What a person types to have the same again."""
        words = ["sockway", "lab", "run", *names]
        words += ["--quick"] if self.quick else []
        return shlex.join([*words, "--seed", str(self.seed)])


def run_all(experiments: Sequence[Experiment], run: Run) -> list[Done]:
    """Run experiments one after the other.

    Raises:
        ConfigError: the output directory can't be made.
        MissingExtra: a package is missing that experiments run or that writes the report.

    """
    need("lab")
    made_directory(run.output)
    adopt_orphans()
    # As Ctrl-C, so that what is below is undone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    done = []
    console = Console(stderr=True, highlight=False)
    for experiment in experiments:
        console.print(f"[bold]{experiment.name}[/]: {experiment.description}", soft_wrap=True)
        done.append(_run_one(experiment, run))
        if done[-1].result.error:
            console.print(f"  failed: {done[-1].result.error}", style="red", soft_wrap=True)
    return done


def made_directory(output: Path) -> None:
    """See to it that the report has somewhere to go, before anything is measured.

    Raises:
        ConfigError: it has not.

    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ConfigError(
            f"can't write to {output}: {error.strerror}", hint="--output another directory"
        ) from None


def results(done: Sequence[Done]) -> Results:
    """All of a run, for programs."""
    return Results(
        experiments={each.experiment.name: each.result for each in done}, machine=machine()
    )


def _run_one(experiment: Experiment, run: Run) -> Done:
    began = time.monotonic()
    mark = uuid.uuid4().hex[:12]
    with controllers_as_before():
        # It has the mark, too, and goes with all else.
        answer = Path(tempfile.mkdtemp(prefix=prefix(mark))) / "answer.json"
        task = {
            "entry": experiment.entry, "output": str(run.output.resolve()), "quick": run.quick,
            "seed": run.seed, "answer": str(answer),
        }  # fmt: skip
        try:
            told = _ask(task, answer, patient(experiment.limit[0 if run.quick else 1]), mark)
        finally:
            end_children()
            sweep(mark)
    findings = Findings.model_validate(told["findings"]) if "findings" in told else None
    result = ExperimentResult(
        systems=findings.systems if findings else {},
        command=run.command([experiment.name]),
        seconds=round(time.monotonic() - began, 1),
        quick=run.quick,
        seed=run.seed,
        error=told.get("error"),
    )
    return Done(experiment, result, findings)


def _ask(task: dict[str, Any], answer: Path, limit: float, mark: str) -> dict[str, Any]:
    """Have a process do it, and read what it has to say."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sockway.lab.one"],
        stdin=subprocess.PIPE,
        stdout=sys.stderr,
        text=True,
        env={**os.environ, RUN_VARIABLE: mark},
        # Ctrl-C is this process's, which then asks once: a second time would break off what clears
        # away.
        process_group=0,
    )
    try:
        process.communicate(json.dumps(task), timeout=limit)
    except subprocess.TimeoutExpired:
        _end(process)
        return {"error": f"not done within {limit:g} s"}
    except BaseException:
        _end(process)
        raise
    if answer.exists():
        told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return told
    if process.returncode < 0:
        return {"error": f"its process was ended by signal {-process.returncode}"}
    return {"error": f"its process ended with status {process.returncode}, and said nothing"}


def _end(process: subprocess.Popen[str]) -> None:
    """Ask, so that it can clear away; then make it."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


__all__ = ["Done", "Run", "made_directory", "results", "run_all"]
