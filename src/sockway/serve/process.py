"""Worker processes: started with their sockets, watched and signalled by pidfd.

A process is known by its pid and its start time together, so one that was started by an earlier
supervisor can be taken over from its record, and a pid that was given to another is never
signalled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from sockway.errors import NotFoundError
from sockway.serve.spec import Identity

_LAUNCH: Final = Path(__file__).with_name("launch.py")
_START_TIME_FIELD: Final = 19
"""Of /proc/PID/stat, counted from the field behind the command's name."""


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[_START_TIME_FIELD])


@dataclass(frozen=True)
class ProcessId:
    """A process, told apart from all others that had or will have its pid."""

    pid: int
    started: int
    """Clock ticks since boot."""

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return start_time(self.pid) == self.started


class WorkerProcess:
    """A worker of a generation; a child, or an orphan of a supervisor that died."""

    def __init__(
        self, worker: int, identity: ProcessId, child: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Watch a process that runs.

        Raises:
            NotFoundError: it has ended.

        """
        self.worker = worker
        self.id = identity
        self._child = child
        self.exited = asyncio.Event()
        try:
            self._pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            raise NotFoundError(f"process {identity.pid} has ended") from None
        if child is None and not identity.is_alive:
            os.close(self._pidfd)
            raise NotFoundError(f"process {identity.pid} has ended")
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    @classmethod
    def start(
        cls,
        worker: int,
        command: Sequence[str],
        descriptors: Sequence[int],
        environment: Mapping[str, str],
        identity: Identity | None,
    ) -> Self:
        """Start a program with these sockets as its descriptors from 3 on.

        It has a session of its own, and goes on if this process dies.
        """
        who = (
            f"{identity.uid}:{identity.gid}:{','.join(map(str, identity.groups))}"
            if identity
            else ""
        )
        child = subprocess.Popen(
            [
                sys.executable, "-I", "-S", str(_LAUNCH), ",".join(map(str, descriptors)), who,
                "--", *command,
            ],
            pass_fds=tuple(descriptors),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        started = start_time(child.pid)
        # A zombie has no start time here: it is a child that ended at once.
        return cls(worker, ProcessId(child.pid, started or 0), child)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.id.pid

    @property
    def status(self) -> str:
        """How it ended, for people; of an orphan nobody knows."""
        code = self._child.returncode if self._child else None
        if code is None:
            return "ended"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with status {code}"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        """Kill it and what it started in its process group."""
        # The group's number is the leader's pid, which is not given away while it is not reaped
        # and, for an orphan, while any member lives.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not self.exited.is_set() and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
                return
        self.signal(signal.SIGKILL)

    async def wait(self, seconds: float) -> bool:
        """Whether it ended within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self.exited.wait()
        except TimeoutError:
            return False
        return True

    def owns(self, pid: int) -> bool:
        """Whether `pid` is it, or of the session that it leads."""
        try:
            return os.getsid(pid) == self.pid
        except ProcessLookupError:
            return False

    def close(self) -> None:
        """Stop watching."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_exit(self) -> None:
        if self._child is not None:
            self._child.wait()
        self.close()
        self.exited.set()
