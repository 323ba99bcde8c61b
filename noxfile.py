"""The tests under other Pythons: every version that pyproject.toml claims and that is installed.

`make pythons` runs it. A version that is not installed is a skipped session, named at the end: it
was not tested.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
VERSIONS = nox.project.python_versions(PROJECT)
# What depends on the Python and needs no virtual machine and no browser.
TESTS = ("tests/wire", "tests/kernel", "tests/sockets", "tests/cli")
# Whose verdict is the same under every Python; the first environment has them.
CHECKERS = ("auditwheel", "clang-format", "import-linter", "mypy", "nox", "ruff", "selenium", "axe")

nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True

if shutil.which("pyenv"):
    # Its shims start only the versions that are selected: select all that are claimed.
    known = subprocess.run(
        ["pyenv", "versions", "--bare"], check=True, capture_output=True, text=True
    ).stdout.split()
    claimed = [name for name in known if name.rpartition(".")[0] in VERSIONS]
    os.environ.setdefault("PYENV_VERSION", ":".join(claimed))


@nox.session(python=VERSIONS)
def tests(session: nox.Session) -> None:
    """Run the tests that depend on the Python, against the built wheel."""
    (wheel,) = (ROOT / "out" / "dist").glob("*.whl")
    listed = str(session.run_install("python", "scripts/requirements.py", "dev", silent=True))
    wanted = [line for line in listed.splitlines() if not line.startswith(CHECKERS)]
    session.install("-q", *wanted)
    session.install("-q", "--no-deps", "--force-reinstall", str(wheel))
    session.run("python", "-m", "pytest", *(session.posargs or TESTS))
