"""The file: durable, one process at a time, and clear about what is wrong with it."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sockway.errors import (
    BusyError,
    ConfigError,
    IncompatibleError,
    NotFoundError,
    SockwayError,
    StateError,
)
from sockway.fleet import Registry, SqliteStore, Transaction, sqlite

ASSIGNING = """
import sys
from sockway.fleet import Registry
path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Registry.open(path, create=True) as registry:
    for number in range(count):
        print(registry.assign(f"{who}-{number}").server_id, flush=True)
"""


def assigning(path: Path, who: str, count: int) -> subprocess.Popen[str]:
    """A process that assigns so many IDs, and prints each when it has it."""
    return subprocess.Popen(
        [sys.executable, "-c", ASSIGNING, str(path), who, str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_at_once_get_different_ids(tmp_path: Path) -> None:
    """While the file is made by one of them, and with few IDs to choose from."""
    path = tmp_path / "ids.db"
    with Registry.open(path, create=True) as registry:
        registry.configure(bits=8)
    processes = [assigning(path, f"p{number}", 40) for number in range(6)]
    given = [int(line) for each in processes for line in each.communicate(timeout=60)[0].split()]
    assert all(each.returncode == 0 for each in processes)
    assert len(given) == len(set(given)) == 240
    with Registry.open(path) as registry:
        assert {entry.server_id for entry in registry.entries()} == set(given)
        assert registry.current() == 240


def test_processes_at_once_make_one_file(tmp_path: Path) -> None:
    """And one registry in it."""
    path = tmp_path / "new" / "ids.db"
    processes = [assigning(path, f"p{number}", 3) for number in range(6)]
    given = [each.communicate(timeout=60)[0].split() for each in processes]
    assert [len(each) for each in given] == [3] * 6
    with Registry.open(path) as registry:
        assert len(registry.entries()) == 18


def test_a_process_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    """What it was told to have is there; nothing is twice; the next one goes on."""
    path = tmp_path / "ids.db"
    with Registry.open(path, create=True) as registry:
        registry.configure(bits=12)
    told: list[int] = []
    for round_ in range(5):
        process = assigning(path, f"r{round_}", 4000)
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        time.sleep(0.02 * round_)
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.stdout.close()
        process.wait(timeout=20)
        assert process.returncode == -signal.SIGKILL
        told += [int(line) for line in lines if line.strip()]
        with Registry.open(path) as registry:
            entries = registry.entries()
        numbers = [entry.server_id for entry in entries]
        assert set(told) <= set(numbers)
        assert len(numbers) == len({entry.name for entry in entries})
        # One more at most: done, and killed before it could say so.
        assert len(numbers) - len(told) <= round_ + 1
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    with Registry.open(path) as registry:
        assert registry.assign("after").server_id not in told


def test_nothing_of_a_change_that_fails_stays(tmp_path: Path) -> None:
    """Neither its records nor its revision."""
    with Registry.open(tmp_path / "ids.db", create=True) as registry:
        registry.assign("web1", 17)
        before = registry.entries(), registry.facts().revision
        with pytest.raises(StateError):
            registry.adopt({"web0": 3, "web9": 17})
        assert (registry.entries(), registry.facts().revision) == before

        def breaking(work: Transaction) -> None:
            Registry.bump(work, "half")
            work.drop(17)
            work.drop_report("lb1")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            registry.rewrite(breaking)
        assert (registry.entries(), registry.facts().revision) == before
        assert registry.assign("web2").revision == 2  # and nothing is left open


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    """It, and what SQLite writes beside it."""
    path = tmp_path / "deep" / "ids.db"
    with Registry.open(path, create=True) as registry:
        registry.assign("web1")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"ids.db": 0o600, "ids.db-wal": 0o600, "ids.db-shm": 0o600}


def test_it_is_durable(tmp_path: Path) -> None:
    """Changes are on the disk when they return."""
    store = SqliteStore.open(tmp_path / "ids.db", create=True)
    pragma = store._connection.execute
    assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)
    assert pragma("PRAGMA synchronous").fetchone() == (2,)  # FULL
    store.close()


def _no_sqlite(path: Path) -> None:
    path.write_bytes(b"something else, longer than a header of SQLite" * 100)


def _empty(path: Path) -> None:
    path.touch()


def _foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (a)")
    connection.close()


def _newer(path: Path) -> None:
    with Registry.open(path, create=True):
        pass
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def _damaged(path: Path) -> None:
    with Registry.open(path, create=True) as registry:
        for number in range(200):
            registry.assign(f"web{number}")
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\x5a" * (len(raw) - 4096)
    path.write_bytes(raw)


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (_no_sqlite, StateError, "it is no SQLite file"),
        (_empty, NotFoundError, "is empty"),
        (_foreign, StateError, "an SQLite file, but no registry"),
        (_newer, IncompatibleError, "has schema 99"),
        (_damaged, StateError, "is damaged"),
        (_directory, ConfigError, "is no file"),
        (lambda _: None, NotFoundError, "there is no registry"),
    ],
)
def test_files_that_can_not_be_used(
    tmp_path: Path, spoil: Callable[[Path], None], kind: type[SockwayError], words: str
) -> None:
    """One error each, which names the file and the way out; the file stays as it is."""
    path = tmp_path / "ids.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(kind, match=words) as raised, Registry.open(path) as registry:
        registry.entries()
    assert str(path) in raised.value.message
    assert raised.value.hint
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_foreign_file_is_not_made_a_registry(tmp_path: Path) -> None:
    """Not even where one would be made."""
    path = tmp_path / "ids.db"
    _foreign(path)
    with pytest.raises(StateError, match="no registry"), Registry.open(path, create=True):
        pass


def test_a_file_that_stays_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, and then said."""
    monkeypatch.setattr(sqlite, "_PATIENCE", 0.2)
    path = tmp_path / "ids.db"
    with Registry.open(path, create=True) as registry:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BusyError, match="is locked by another process"):
            registry.assign("web1")
        assert registry.entries() == []  # who reads does not wait
        other.close()
        registry.assign("web1")
