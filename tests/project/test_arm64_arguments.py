"""The command behind `make arm64` accepts only the names of its jobs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_an_unknown_job_is_refused(tmp_path: Path) -> None:
    """Refuse a mistyped name before anything is fetched, and say which names there are."""
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.machines.arm64", f"--wheel={tmp_path / 'none.whl'}",
            "--cache=/dev/null/none", f"--output={tmp_path}", "docter",
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "no job is named 'docter'; there are doctor, programs, release" in done.stderr
    assert not list(tmp_path.iterdir())
