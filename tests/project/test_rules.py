"""Rules of the project itself: what is public, what a run of tests does."""

from __future__ import annotations

import importlib
import importlib.resources
import pkgutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

import sockway

pytest_plugins = ["pytester"]


def modules() -> Iterator[str]:
    """Names of all modules of the package."""
    yield "sockway"
    for module in pkgutil.walk_packages(sockway.__path__, "sockway."):
        if not module.name.endswith("__main__"):
            yield module.name


def in_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, as the linter sorts __all__."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("name", tuple(modules()))
def test_every_module_imports_and_keeps_its_all_sorted(name: str) -> None:
    """A module imports by itself; its __all__ is sorted, without repeats, and exists."""
    module = importlib.import_module(name)
    public = list(getattr(module, "__all__", []))
    assert public == sorted(set(public), key=in_order)
    assert [thing for thing in public if not hasattr(module, thing)] == []


def test_the_public_surface_is_what_all_says() -> None:
    """Each name of __all__ is there, and no other without underscore, submodules apart."""
    submodules = {module.name for module in pkgutil.iter_modules(sockway.__path__)}
    assert [name for name in sockway.__all__ if not hasattr(sockway, name)] == []
    names = {name for name in vars(sockway) if not name.startswith("_")} - submodules
    helpers = {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    assert names - helpers == set(sockway.__all__) - submodules


def test_a_worker_s_imports_stay_small() -> None:
    """What workers import brings neither libbpf nor netlink nor the supervisor with it."""
    script = "import sys, sockway.drain, sockway.quic; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"pyroute2", "pydantic", "cffi", "sockway.kernel", "sockway.sockets"}


def test_everything_public_is_documented() -> None:
    """What is in the package's __all__ has a docstring, and so have its public methods."""
    bare = []
    for name in sockway.__all__:
        thing = getattr(sockway, name)
        if not isinstance(thing, type):
            continue
        bare += [name] if not thing.__doc__ else []
        bare += [
            f"{name}.{member}"
            for member, value in vars(thing).items()
            if not member.startswith("_")
            and (callable(value) or isinstance(value, property))
            and not value.__doc__
        ]
    assert bare == []


def test_the_wheel_carries_the_data_plane() -> None:
    """The compiled objects and the type marker are package data: no compiler is needed later."""
    package = importlib.resources.files("sockway")
    objects = {entry.name for entry in (package / "kernel" / "objects").iterdir()}
    assert "socket_router.bpf.o" in objects
    assert (package / "py.typed").is_file()


def test_a_skip_is_a_failure_in_ci(
    pytester: pytest.Pytester,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """--fail-on-skip fails tests and files that skip, and leaves xfail alone."""
    pytester.makeconftest(
        "from tests.conftest import (\n"
        "    pytest_addoption, pytest_make_collect_report, pytest_runtest_makereport)\n"
    )
    pytester.makepyfile(
        test_one="""
        import pytest

        def test_runs(): pass

        def test_skips(): pytest.skip("no such thing here")

        @pytest.mark.xfail
        def test_xfails(): assert False
        """,
        test_file="""
        import pytest
        pytest.skip("not on this machine", allow_module_level=True)
        """,
    )
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    lenient = pytester.runpytest_subprocess("test_one.py")
    lenient.assert_outcomes(passed=1, skipped=1, xfailed=1)
    strict = pytester.runpytest_subprocess("--fail-on-skip", "test_one.py")
    strict.assert_outcomes(passed=1, failed=1, xfailed=1)
    file = pytester.runpytest_subprocess("--fail-on-skip", "test_file.py")
    assert file.ret != 0
    file.stdout.fnmatch_lines(["*not on this machine*"])
