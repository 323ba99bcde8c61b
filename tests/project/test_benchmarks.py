"""Benchmarks run, and write what they measured: the quick ones, each kind of writing once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.mark.parametrize("name", ["aes", "floors", "stamp", "start"])
def test_it_runs_and_writes_figures(name: str, tmp_path: Path) -> None:
    """Numbers, and the machine that they are of."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"bench_{name}.py", "--quick", "--output", tmp_path],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
    found = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert "kernel" in json.dumps(found)
    assert any(isinstance(value, dict | list | float) for value in found.values())
