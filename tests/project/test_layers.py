"""Imports point down only, and the check that says so can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.documents import ROOT

UPWARD = "from sockway.kernel import ffi\n"
FOREIGN = "import cffi\n"


def lint_imports(source: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of pyproject.toml against a source tree."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()",
         "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        env={**os.environ, "PYTHONPATH": str(source)},
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def test_imports_point_down_only() -> None:
    """The contracts of pyproject.toml hold."""
    done = lint_imports(ROOT / "src")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line"), [("wire/addresses.py", UPWARD), ("sockets/service.py", FOREIGN)]
)
def test_the_contracts_can_break(tmp_path: Path, module: str, line: str) -> None:
    """An import upward, and cffi outside of the kernel layer, break a contract."""
    shutil.copytree(ROOT / "src" / "sockway", tmp_path / "sockway")
    path = tmp_path / "sockway" / module
    text = path.read_text(encoding="utf-8")
    future = "from __future__ import annotations\n"
    path.write_text(text.replace(future, future + line, 1), encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout
