from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from typer import Exit, Typer
from typer.testing import CliRunner

from sockway.cli.doctor import doctor
from sockway.errors import FeatureError
from sockway.kernel import Link, Netns, Program, ffi
from sockway.kernel.features import Feature, Probe, bpf, host, network, probe_all, ways
from tests.kernel.child import as_nobody, in_child


def _by_name(features: list[Feature]) -> dict[str, Feature]:
    return {feature.name: feature for feature in features}


@pytest.mark.root
def test_this_machine_has_what_the_tests_need() -> None:
    """All that is required is there; each thing is asked once and says what it is for."""
    features = probe_all()
    assert [feature for feature in features if feature.required and not feature.ok] == []
    assert len(_by_name(features)) == len(features) > 25
    assert all(feature.need and feature.detail for feature in features)
    assert all(bool(feature.remedy) != feature.ok for feature in features)


@pytest.mark.root
def test_asking_leaves_nothing_behind(bpffs_root: Path) -> None:
    """No pin, and no descriptor of this process."""
    probe_all(bpffs_root)  # opens what Python keeps open
    pins, descriptors = sorted(bpffs_root.iterdir()), len(list(Path("/proc/self/fd").iterdir()))
    probe_all(bpffs_root)
    assert sorted(bpffs_root.iterdir()) == pins
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


@pytest.mark.root
def test_a_user_without_rights_gets_answers() -> None:
    """Every probe answers; what could not be tried says so and how to, and no more is claimed."""
    probe_all()  # imports what the child can't

    def ask() -> str:
        return json.dumps([[f.name, f.ok, f.detail, f.remedy] for f in probe_all()])

    found = {name: rest for name, *rest in json.loads(as_nobody(ask))}
    assert found["libbpf"][0]
    for name in ("bpf()", "program type xdp", "map array_of_maps", "helper bpf_loop"):
        ok, detail, remedy = found[name]
        assert not ok
        assert detail.startswith("not known: ")
        assert "as root" in remedy
    assert found["CAP_BPF"][:2] == [False, "user 65534 lacks it"]
    assert all(remedy for ok, _detail, remedy in found.values() if not ok)


@pytest.mark.root
def test_a_root_that_is_not_on_bpffs_is_a_no(tmp_path: Path, bpffs_root: Path) -> None:
    """The directory is named; one on bpffs is fine."""
    lacking = _by_name(probe_all(tmp_path / "services"))["bpffs"]
    assert not lacking.ok
    assert str(tmp_path) in lacking.detail
    assert "mount -t bpf" in lacking.remedy
    assert _by_name(probe_all(bpffs_root / "services"))["bpffs"].ok


def test_without_libbpf_it_says_what_to_install() -> None:
    """The library is looked for when it is needed, so that its lack can be told."""

    def ask() -> Feature:
        ffi._load.cache_clear()
        vars(ffi.lib).clear()
        vars(ffi)["_LIBRARY"] = "libnonesuch.so.1"
        return _by_name(probe_all())["libbpf"]

    words = in_child(ask)
    assert "ok=False" in words
    assert "libnonesuch.so.1 can't be loaded: cannot open shared object file" in words
    for command in ("apt-get install libbpf1", "dnf install libbpf", "apk add libbpf"):
        assert command in words


def test_a_libbpf_that_does_not_load_is_told_from_none(tmp_path: Path) -> None:
    """One of another processor, or a broken one: the loader's reason is in the error."""
    (tmp_path / "libbpf.so.1").write_bytes(b"\x7fELF")
    done = subprocess.run(
        [sys.executable, "-c", "from sockway.kernel import ffi; ffi.version()"],
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert "FeatureError: libbpf.so.1 can't be loaded:" in last
    assert "file too short" in last


def test_a_refusal_is_an_answer() -> None:
    """Errors of Sockway and of the system become a no with the probe's remedy; others say so."""

    def refuse(error: Exception) -> Feature:
        def run() -> str:
            raise error

        return Probe("thing", "need", "remedy", run).ask()

    assert refuse(FeatureError("lacks it")) == Feature(
        "thing", False, "lacks it", "need", "remedy", False
    )
    assert refuse(OSError(5, "broken")).remedy == "remedy"
    assert "root" in refuse(PermissionError(1, "no")).remedy
    unforeseen = refuse(LookupError("a bug"))
    assert not unforeseen.ok
    assert unforeseen.detail == "not known: unexpected LookupError: a bug"
    assert "report it" in unforeseen.remedy


@pytest.mark.root
def test_no_probe_keeps_the_others_from_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is there when each probe of the machine, and those of its network, break."""
    wanted = [(feature.name, feature.need) for feature in probe_all()]

    def breaks(*_arguments: object) -> str:
        raise ZeroDivisionError("nobody foresaw this")

    def roots(module: ModuleType) -> list[Path]:
        return [Path("/sys/fs/bpf/sockway")] if module is host else []

    for module in (bpf, host, network, ways):
        broken = [replace(probe, run=breaks) for probe in module.probes(*roots(module))]
        monkeypatch.setattr(module, "probes", lambda *_root, broken=broken: broken)
    monkeypatch.setattr("sockway.balancer.diagnosis.diagnose", breaks)
    app = Typer()
    app.command()(doctor)
    done = CliRunner().invoke(app, ["--json"])
    assert done.exit_code == 1, done.output
    rows = json.loads(done.output)
    assert [(row["name"], row["need"]) for row in rows[:-1]] == wanted
    assert rows[-1]["name"] == "network"
    assert all("unexpected ZeroDivisionError" in row["detail"] for row in rows)


@pytest.mark.root
def test_the_bind_probe_sees_a_bind_let_through(
    netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sockets that all share their port are no conflict: then it is one let through."""
    assert not netns.run(network._is_third_bind_let_through)
    make = network._tcp
    monkeypatch.setattr(network, "_tcp", lambda **_options: make(shared=True))
    assert netns.run(network._is_third_bind_let_through)
    feature = _by_name(probe_all())["bind conflicts"]
    assert not feature.ok
    assert not feature.required


@pytest.fixture
def app() -> Typer:
    """The command by itself."""
    made = Typer()
    made.command()(doctor)
    return made


@pytest.mark.root
def test_the_command_tells_all_as_json(app: Typer) -> None:
    """A list with an object for each feature; success where nothing required is missing."""
    done = CliRunner().invoke(app, ["--json"])
    assert done.exit_code == 0, done.output
    features = json.loads(done.output)
    assert {"name", "ok", "detail", "need", "remedy", "required", "instead"} == set(features[0])
    assert {feature["name"] for feature in features} == set(_by_name(probe_all()))


@pytest.mark.root
def test_the_command_fails_where_something_is_missing(
    app: Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, and what to do about it, required things first."""
    monkeypatch.setenv("SOCKWAY_BPFFS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, [])
    assert done.exit_code == Exit(1).exit_code
    assert "NO" in done.output
    assert done.output.index("What to do") < done.output.index("mount -t bpf bpf /sys/fs/bpf")


@pytest.mark.root
def test_an_older_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a newer way is missing nothing is lacking, and the row says what is used."""

    def refuse(*_arguments: object, **_others: object) -> Link:
        raise FeatureError("this kernel has none")

    assert all(feature.ok for feature in _by_name(probe_all()).values() if feature.instead)
    monkeypatch.setattr(Program, "attach_tcx", refuse)
    row = _by_name(probe_all())["tc programs by a link"]
    assert row.ok
    assert row.instead == "filters of clsact"
    assert row.detail == "this kernel has none; used instead: filters of clsact"
