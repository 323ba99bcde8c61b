"""Registries as JSON: copies, moves, and what contradicts itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sockway.errors import ConfigError, SockwayError, StateError
from sockway.fleet import Registry
from sockway.fleet.exchange import exported, imported, read_document

HAND: dict[str, list[dict[str, Any]]] = {
    "ids": [{"name": "web1", "server_id": 17}, {"name": "web2", "server_id": 18}]
}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """One with something of everything."""
    with Registry.open(tmp_path / "ids.db", create=True) as made:
        made.configure(bits=16, quarantine=1000, drain=10)
        made.assign("web1", 17)
        made.assign("web2")
        made.assign("web3")
        made.report("host1/main", 3, {"tcp://a": ("web1", "web2")}, by_hand={"x": 5})
        made.tell("web1", "tcp main on a")
        made.retire("web2")
        yield made


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Registry]:
    """An empty one."""
    with Registry.open(tmp_path / "other.db", create=True) as made:
        yield made


def take(registry: Registry, data: Any, tmp_path: Path) -> list[str]:
    """Import; the names that are new."""
    file = tmp_path / "ids.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return [entry.name for entry in imported(registry, read_document(file), time.time())]


def test_an_empty_registry_becomes_the_copy(
    registry: Registry, other: Registry, tmp_path: Path
) -> None:
    """All of it: what balancers know of the one they know of the other."""
    data = exported(registry)
    assert len(take(other, data, tmp_path)) == 3
    again = exported(other)
    assert again["clock"] >= data["clock"]
    assert again | {"clock": 0} == data | {"clock": 0}
    assert take(other, data, tmp_path) == []  # once more is nothing
    assert other.assign("web1").server_id == 17


def test_ids_that_were_kept_by_hand(other: Registry, tmp_path: Path) -> None:
    """Names and numbers are enough; what is there already stays."""
    assert take(other, HAND, tmp_path) == ["web1", "web2"]
    more = {"ids": [*HAND["ids"], {"name": "web3", "server_id": 19}]}
    assert take(other, more, tmp_path) == ["web3"]
    assert [(e.name, e.server_id, e.revision) for e in other.entries()] == [
        ("web1", 17, 1),
        ("web2", 18, 1),
        ("web3", 19, 2),
    ]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([{"name": "web9", "server_id": 17}], "17 is web9's there and web1's here"),
        ([{"name": "web1", "server_id": 99}], "web1 has 99 there and 17 here"),
        ([{"name": "web9", "server_id": 70000}], "70000 of web9 is above 65535, the highest"),
    ],
)
def test_a_conflict_is_refused_as_a_whole(
    registry: Registry, tmp_path: Path, ids: list[dict[str, Any]], words: str
) -> None:
    """What would not contradict is not taken in either."""
    before = exported(registry)
    data = {"ids": [{"name": "new", "server_id": 5}, *ids, {"name": "newer", "server_id": 6}]}
    with pytest.raises(StateError, match=words) as raised:
        take(registry, data, tmp_path)
    assert "nothing was taken in" in str(raised.value.hint)
    assert exported(registry) | {"clock": 0} == before | {"clock": 0}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "it can't be used"),
        ({}, "ids can't be used"),
        ({"ids": [], "version": 2}, "version can't be used"),
        ({"ids": [], "format": "x"}, "format can't be used"),
        ({"ids": [{"name": "a b", "server_id": 1}]}, r"ids\[0\].name can't be used"),
        ({"ids": [{"name": "a", "server_id": 0}]}, r"ids\[0\].server_id can't be used"),
        ({"ids": [{"name": "a", "server_id": 1 << 24}]}, r"ids\[0\].server_id can't be used"),
        ({"ids": [{"name": "a", "server_id": 1, "x": 1}]}, r"ids\[0\].x can't be used"),
        ({"ids": [{"name": "a", "server_id": 1}, {"name": "b", "server_id": 1}]}, "1 is there 2"),
        ({"ids": [{"name": "a", "server_id": 1}, {"name": "a", "server_id": 2}]}, "a is there 2"),
        ({"ids": [{"name": "a", "server_id": 1, "state": "retiring"}]}, "retired_at says"),
        ({"ids": [{"name": "a", "server_id": 1, "revision": 5}], "revision": 4}, "was not yet"),
        ({"ids": [], "clock": 1e12}, "days ahead"),
        ({"ids": [], "revision": 1 << 70}, "revision can't be used"),
        ({"ids": [{"name": "a", "server_id": 1, "tellers": ["\ud800"]}]}, r"tellers\[0\]"),
        ({"ids": [{"name": "a", "server_id": 1, "tellers": [""]}]}, r"tellers\[0\]"),
        ("[" * 100_000, "is not JSON"),
        ("9" * 5000, "is not JSON"),
        ({"ids": [], "rules": {"bits": 8, "quarantine": 1, "drain": 10}}, "drain is longer"),
        (
            {"ids": [], "balancers": [{"balancer": "x", "revision": 1, "reported_at": 0}]},
            "balancer x has revision 1",
        ),
    ],
)
def test_what_is_no_registry(other: Registry, tmp_path: Path, data: Any, words: str) -> None:
    """One error that says where; nothing is taken in."""
    with pytest.raises(ConfigError, match=words) as raised:
        take(other, data, tmp_path)
    assert raised.value.hint
    assert "pydantic" not in str(raised.value)
    assert other.entries() == []


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Is named."""
    with pytest.raises(SockwayError, match="can't read"):
        read_document(tmp_path / "none.json")
