"""Stamps of a host with an ID of the registry: noted before they begin, until they end."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from sockway.balancer.stamping import Stamping, StampingSpec
from sockway.errors import ConfigError, NotFoundError, StateError
from sockway.fleet import NotKnownYetError, Registry
from sockway.fleet.telling import stamp_down, stamp_up
from sockway.kernel.features.host import cgroup2_mount


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of the test's own."""
    mount = cgroup2_mount()
    assert mount is not None
    place = mount / f"sockway-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    yield place
    place.rmdir()


@pytest.fixture
def registry(
    bpffs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry]:
    """One with two backends, where hosts look for it."""
    del bpffs_root
    monkeypatch.setenv("SOCKWAY_IDS", str(tmp_path / "ids.db"))
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path / "run"))
    with Registry.open(create=True) as made:
        made.assign("web1", 17)
        made.assign("web2", 18)
        made.report("lb1", 2)
        yield made


def spec(cgroup: Path, **changed: Any) -> StampingSpec:
    """Stamps by a backend's name."""
    fields: dict[str, Any] = {
        "cgroup": cgroup, "server_ports": [443], "peers": [ip_network("10.0.0.0/8")],
        "profile": "katran",
    }  # fmt: skip
    return StampingSpec(**(fields | changed))


def tellers(registry: Registry) -> dict[str, list[str]]:
    """What tells each ID, without where."""
    return {e.name: [t.partition(" on ")[0] for t in e.tellers] for e in registry.entries()}


@pytest.mark.root
def test_the_registry_knows_who_tells_an_id(registry: Registry, cgroup: Path) -> None:
    """From before it is told until after; a change of names is a change there."""
    assert stamp_up(spec(cgroup, backend="web1")) == 17
    assert tellers(registry) == {"web1": ["tcp main"], "web2": []}
    assert stamp_up(spec(cgroup, backend="web1", server_ports=[80])) == 17
    assert tellers(registry) == {"web1": ["tcp main"], "web2": []}
    assert stamp_up(spec(cgroup, backend="web2")) == 18
    assert tellers(registry) == {"web1": [], "web2": ["tcp main"]}
    assert stamp_up(spec(cgroup, server_id=5)) == 5
    assert tellers(registry) == {"web1": [], "web2": []}
    stamp_up(spec(cgroup, backend="web1"))
    stamp_down("main")
    assert tellers(registry) == {"web1": [], "web2": []}
    with pytest.raises(NotFoundError, match="nothing is stamped"):
        stamp_down("main")


@pytest.mark.root
def test_what_fails_leaves_all_as_it_was(registry: Registry, cgroup: Path, tmp_path: Path) -> None:
    """The stamps, and what the registry notes."""
    with pytest.raises(ConfigError, match="can't open cgroup"):
        stamp_up(spec(tmp_path / "none", backend="web1"))
    assert tellers(registry) == {"web1": [], "web2": []}
    stamp_up(spec(cgroup, backend="web1"))
    registry.report("lb1", 1, {"tcp://a": ("web1", "web2")})
    with pytest.raises(NotKnownYetError, match="lb1 lacks revision 2"):
        stamp_up(spec(cgroup, backend="web2"))
    with pytest.raises(NotFoundError, match="'web9' has no server ID"):
        stamp_up(spec(cgroup, backend="web9"))
    assert tellers(registry) == {"web1": ["tcp main"], "web2": []}
    with pytest.raises(StateError, match="web1 still stamps"):
        registry.retire("web1")
    stamp_down("main")
    registry.retire("web1")


@pytest.mark.root
@pytest.mark.usefixtures("registry")
def test_a_word_that_could_not_be_said_is_said_by_the_next_down(
    cgroup: Path, tmp_path: Path
) -> None:
    """Stamps have ended; the registry was away, or is gone for good."""
    stamp_up(spec(cgroup, backend="web1"))
    database = tmp_path / "ids.db"
    database.rename(tmp_path / "away")
    database.mkdir()
    with pytest.raises(StateError, match="told no more, but the registry does not know that"):
        stamp_down("main")
    database.rmdir()
    (tmp_path / "away").rename(database)
    stamp_down("main")
    with pytest.raises(NotFoundError, match="nothing is stamped"):
        stamp_down("main")
    with Registry.open(create=True) as opened:
        assert tellers(opened)["web1"] == []

    stamp_up(spec(cgroup, backend="web1"))
    for file in tmp_path.glob("ids.db*"):
        file.unlink()
    assert stamp_up(spec(cgroup, server_id=5)) == 5
    stamp_down("main")


def test_who_does_not_take_the_id_does_not_stamp(tmp_path: Path) -> None:
    """By the balancer's layer alone a name is no number."""
    with pytest.raises(ConfigError, match="the server ID of web1 is to be taken"):
        Stamping.up(spec(tmp_path, backend="web1"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('backend = "web1"\nserver_id = 5', "both say the server ID"),
        ('registry = "ids.db"', "a registry wants backend"),
    ],
)
def test_files_that_contradict_themselves(tmp_path: Path, lines: str, words: str) -> None:
    """One error each."""
    file = tmp_path / "stamp.toml"
    file.write_text(f'peers = ["10.0.0.0/8"]\nprofile = "katran"\n{lines}\n', encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        StampingSpec.read(file)
    assert words in str(raised.value)
    assert "stamp.toml" in raised.value.message
    assert ":  " not in raised.value.message
