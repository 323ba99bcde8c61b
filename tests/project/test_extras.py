"""Without its extras Sockway works, and what needs one says so in one sentence."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import sockway
from sockway.extras import MODULES
from tests.project import plain

HERE = Path(sockway.__file__).parent

IMPORT_ALL = """
import importlib, json, pkgutil, sys
import sockway
lacking = {}
for module in pkgutil.walk_packages(sockway.__path__, "sockway."):
    if module.name.endswith("__main__") or module.name == "sockway.serve.become":
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        lacking[module.name] = error.name
print(json.dumps(lacking))
"""


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has Sockway without extras."""
    return plain.make(tmp_path_factory.mktemp("plain") / "venv")


def run(
    python: Path, *arguments: str, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with these arguments in a directory."""
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, check=False, timeout=60, cwd=cwd,
        env={**os.environ, **variables},
    )  # fmt: skip


def test_the_environment_has_no_extra(python: Path, tmp_path: Path) -> None:
    """None of the modules that an extra brings can be found in it."""
    script = f"import importlib.util as u; print([m for m in {list(MODULES)!r} if u.find_spec(m)])"
    done = run(python, "-c", script, cwd=tmp_path)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["lab", "up"],
        ["lab", "up", "--bare"],
        ["lab", "draw"],
        ["lab", "run"],
        ["lab", "run", "resets"],
        ["demo"],
        ["lab", "release"],
    ],
    ids=" ".join,
)
def test_the_lab_says_what_to_install(python: Path, tmp_path: Path, arguments: list[str]) -> None:
    """Status 1, one sentence and the command that helps; nothing is made before."""
    done = run(python, "-m", "sockway", *arguments, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith("sockway: error: ")
    assert first.endswith("not installed; this needs Sockway with the extra [lab]")
    assert second == "  hint: pip install 'sockway[lab]'"
    assert list(tmp_path.iterdir()) == []


def test_experiments_can_be_listed(python: Path, tmp_path: Path) -> None:
    """What only tells needs no extra."""
    done = run(python, "-m", "sockway", "lab", "list", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resets" in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("call", "module"),
    [
        ("sockway.quic.aioquic._connection_class()", "aioquic"),
        ("sockway.wire.quic_lb.aes(bytes(16))", "cryptography"),
    ],
)
def test_what_needs_quic_says_what_to_install(
    python: Path, tmp_path: Path, call: str, module: str
) -> None:
    """In the library it is one error with the same sentence, also for who catches ImportError."""
    script = (
        "import sockway, sockway.quic.aioquic, sockway.wire.quic_lb\n"
        f"try:\n    {call}\n"
        "except ModuleNotFoundError as error:\n"
        "    print(isinstance(error, sockway.SockwayError), error)\n"
    )
    done = run(python, "-c", script, cwd=tmp_path)
    assert done.stdout == (
        f"True {module} is not installed; this needs Sockway with the extra [quic] "
        "(pip install 'sockway[quic]')\n"
    ), done.stderr


def test_every_module_outside_the_lab_can_be_imported(python: Path, tmp_path: Path) -> None:
    """Only the lab's modules lack something, and all that they lack comes with an extra."""
    done = run(python, "-c", IMPORT_ALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lacking: dict[str, str] = json.loads(done.stdout)
    assert "sockway.lab.plot" in lacking, "else this test sees nothing"
    assert {name for name in lacking if not name.startswith("sockway.lab.")} == set()
    assert {found.partition(".")[0] for found in lacking.values()} <= set(MODULES)


def test_what_the_package_imports_is_declared() -> None:
    """Every module that the code imports comes with Python, a requirement, or a known extra."""
    imported: dict[str, str] = {}
    for path in HERE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            imported |= {name.partition(".")[0]: path.name for name in names}
    modules = metadata.packages_distributions()
    base = {"sockway", "_cffi_backend"}
    for line in metadata.requires("sockway") or ():
        if "extra ==" not in line:
            wanted = Requirement(line).name.lower()
            base |= {m for m, homes in modules.items() if wanted in map(str.lower, homes)}
    third = {name for name in imported if name not in sys.stdlib_module_names}
    assert third - base - set(MODULES) == set()


def test_every_extra_is_known() -> None:
    """Each package that an extra names has its modules in the table."""
    for line in metadata.requires("sockway") or ():
        requirement = Requirement(line)
        marker = str(requirement.marker or "")
        if ('"quic"' in marker or '"lab"' in marker) and requirement.name != "sockway":
            assert requirement.name.lower() in MODULES, line
