from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from sockway.errors import BusyError, ConfigError, KernelError, NotFoundError
from sockway.kernel import bpffs
from tests.kernel.child import as_nobody, in_child, running


@pytest.mark.root
def test_bpffs_is_told_from_other_file_systems(bpffs_root: Path, tmp_path: Path) -> None:
    """Also by paths that are yet to be made."""
    assert bpffs.is_bpffs(bpffs_root)
    assert bpffs.is_bpffs(bpffs_root / "not" / "yet")
    assert not bpffs.is_bpffs(tmp_path)
    assert not bpffs.is_bpffs(tmp_path / "not" / "yet")


@pytest.mark.root
def test_what_is_mounted_is_not_mounted_again(bpffs_root: Path) -> None:
    """A path on bpffs is fine as it is."""
    before = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert bpffs.ensure_mounted(bpffs_root / "web") == bpffs_root / "web"
    assert Path("/proc/self/mountinfo").read_text(encoding="utf-8") == before


def test_elsewhere_nothing_is_mounted(tmp_path: Path) -> None:
    """A path on another file system is a mistake, with the way out."""
    with pytest.raises(ConfigError, match="not on a BPF file system") as caught:
        bpffs.ensure_mounted(tmp_path)
    assert "mount -t bpf" in str(caught.value)


@pytest.mark.root
def test_mounts_come_and_go(tmp_path: Path) -> None:
    """What was mounted is bpffs until it is unmounted; then there is nothing to unmount."""
    bpffs.mount(tmp_path)
    assert bpffs.is_bpffs(tmp_path)
    bpffs.unmount(tmp_path)
    assert not bpffs.is_bpffs(tmp_path)
    with pytest.raises(KernelError, match="unmount"):
        bpffs.unmount(tmp_path)
    with pytest.raises(KernelError, match="nonesuch"):
        bpffs.mount(tmp_path / "nonesuch")


@pytest.mark.root
def test_mounting_needs_rights(tmp_path: Path) -> None:
    """A user without capabilities is told so."""
    assert as_nobody(lambda: bpffs.mount(tmp_path)).startswith("PermissionDenied: can't mount")


def _lock(directory: Path) -> str:
    with bpffs.lock(directory):
        return "locked"


@pytest.mark.root
def test_one_process_holds_a_lock(bpffs_root: Path) -> None:
    """Another one gets BusyError that names the directory, until it is given back."""
    with bpffs.lock(bpffs_root):
        assert in_child(lambda: _lock(bpffs_root)).startswith(f"BusyError: {bpffs_root}")
        with pytest.raises(BusyError):
            _lock(bpffs_root)  # nor a second time in this process
    assert in_child(lambda: _lock(bpffs_root)) == "locked"


@pytest.mark.root
def test_an_error_gives_the_lock_back(bpffs_root: Path) -> None:
    """Leaving the block by an exception is leaving it."""
    with pytest.raises(LookupError), bpffs.lock(bpffs_root):
        raise LookupError
    assert in_child(lambda: _lock(bpffs_root)) == "locked"


@pytest.mark.root
def test_a_killed_process_gives_its_lock_back(bpffs_root: Path) -> None:
    """No one has to clean up after it."""
    marker = bpffs_root.parent / "held"

    def hold() -> None:
        with bpffs.lock(bpffs_root):
            marker.touch()
            time.sleep(30)

    with running(hold) as (pid, _answer):
        deadline = time.monotonic() + 10
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(BusyError):
            _lock(bpffs_root)
        os.kill(pid, signal.SIGKILL)
        # Dead, and left for `running` to reap.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert _lock(bpffs_root) == "locked"


def test_a_directory_that_is_not_there_has_no_lock(tmp_path: Path) -> None:
    """It is named."""
    with pytest.raises(NotFoundError, match="nonesuch"):
        _lock(tmp_path / "nonesuch")


def test_a_directory_made_anew_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it goes between opening and locking, the lock is of nothing that anybody sees."""
    directory = tmp_path / "web"
    directory.mkdir()
    really_open = bpffs._open

    def open_and_replace(path: Path) -> int:
        fd = really_open(path)
        path.rename(tmp_path / "old")  # kept, else the inode's number is used again
        path.mkdir()
        return fd

    monkeypatch.setattr(bpffs, "_open", open_and_replace)
    with pytest.raises(NotFoundError, match="removed meanwhile"):
        _lock(directory)
