"""A process that runs a worker: started here, or found from an earlier supervisor.

All is done through a pidfd, so a signal never reaches a process that got a dead one's number.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from sockway.errors import KernelError
from sockway.serve import become
from sockway.serve.identity import start_time
from sockway.serve.placeholders import FIRST_FD
from sockway.serve.users import User


@dataclass(frozen=True)
class Launch:
    """How to start one process."""

    command: Sequence[str]
    environment: Mapping[str, str]
    descriptors: Sequence[int]
    """They become 3, 4, ... in the process."""
    output: int
    """Its standard output and error."""
    pid_file: Path
    """Where it records who it is."""
    directory: Path | None = None
    user: User | None = None


class Process:
    """A process in a session of its own, whoever started it."""

    def __init__(self, pid: int, pidfd: int, *, is_child: bool) -> None:
        """Take over `pidfd`; use `start` or `adopt`."""
        self.pid = pid
        self.is_child = is_child
        self._pidfd = pidfd
        self._ended = asyncio.Event()
        self.status: int | None = None
        """After its end: the exit status, or minus the signal's number; None where unknown."""
        asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    @classmethod
    def start(cls, launch: Launch) -> Self:
        """Start it.

        Raises:
            KernelError: there is no room for another process.

        """
        count = len(launch.descriptors)
        plan = {
            "pid_file": str(launch.pid_file),
            "supervisor": os.getpid(),
            "first_free_fd": FIRST_FD + count,
            "directory": str(launch.directory) if launch.directory else None,
            "user": asdict(launch.user) if launch.user else None,
        }
        python = [sys.executable, "-I", "-S", become.__file__]
        with contextlib.ExitStack() as copies:
            # Copies above the targets: a target that is another's source would be lost.
            above = []
            for descriptor in (launch.output, *launch.descriptors):
                copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_FD + count)
                copies.callback(os.close, copy)
                above.append(copy)
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, above[0], 1),
                (os.POSIX_SPAWN_DUP2, above[0], 2),
                *((os.POSIX_SPAWN_DUP2, fd, FIRST_FD + i) for i, fd in enumerate(above[1:])),
            ]
            try:
                pid = os.posix_spawn(
                    python[0],
                    [*python, json.dumps(plan), *launch.command],
                    {**launch.environment},
                    file_actions=actions,
                    setsid=True,
                    setsigmask=(),
                )
            except OSError as error:
                raise KernelError(
                    f"can't start a process for {launch.command[0]}: {error.strerror}",
                    hint="is there memory, and room for processes (ulimit -u, pids.max)?",
                ) from error
        return cls(pid, os.pidfd_open(pid), is_child=True)

    @classmethod
    def adopt(cls, pid: int, started: int) -> Self | None:
        """The process with this number, if it is still the one that started at this time.

        Args:
            pid: its number.
            started: field 22 of /proc/PID/stat, in clock ticks since boot.

        """
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        # The descriptor holds the process that has the number now; then see who that is.
        if start_time(pid) != started:
            os.close(pidfd)
            return None
        return cls(pid, pidfd, is_child=False)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.is_set()

    async def wait(self) -> int | None:
        """Wait for its end; returns `status`."""
        await self._ended.wait()
        return self.status

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Kill it with all processes of its group, if it has not ended."""
        if self.is_alive:
            # Its number is its group's, and is not given to another before the process is reaped
            # (by us where it is our child; an orphan is watched by its pidfd).
            _signal_group(self.pid, signal.SIGKILL)
            self.send(signal.SIGKILL)

    def describe_end(self) -> str:
        """How it ended, in words."""
        if self.status is None:
            return "ended"
        if self.status >= 0:
            return f"ended with status {self.status}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-self.status).name}"
        return f"was ended by signal {-self.status}"

    def detach(self) -> None:
        """Stop watching it; it runs on."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_end(self) -> None:
        if self.is_child:
            # Those it leaves behind hold sockets and must go too. While it is not reaped, its
            # group's number can't be another's.
            _signal_group(self.pid, signal.SIGTERM)
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            if result is not None:
                died = result.si_code in {os.CLD_KILLED, os.CLD_DUMPED}
                self.status = -result.si_status if died else result.si_status
        self.detach()
        self._ended.set()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
