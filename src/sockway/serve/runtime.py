"""What a supervisor leaves on disk for the next one, and for the command line.

    <runtime>/<network namespace cookie>/<service>/
        control.sock            commands to the supervisor that lives
        notify-N.sock           READY=1 of generation N's workers
        generation-N.json       its workers' processes
        drain-N                 one octet: generation N drains

Files are replaced in one step, so a reader sees the old or the new one. What is written here says
who to signal, and no more: what is routed where is in the kernel.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Final

from sockway.errors import PermissionDenied
from sockway.kernel import current_netns_cookie
from sockway.serve.process import ProcessId

VARIABLE: Final = "SOCKWAY_RUNTIME"
DEFAULT: Final = Path("/run/sockway")
_RECORD: Final = re.compile(r"generation-(\d+)\.json")


def base_directory() -> Path:
    """Where the runtime directories of this network namespace's services are."""
    return Path(os.environ.get(VARIABLE) or DEFAULT) / str(current_netns_cookie())


class RuntimeDirectory:
    """The runtime directory of one service."""

    def __init__(self, name: str) -> None:
        """Name it; nothing is made yet."""
        self.path = base_directory() / name

    def make(self) -> None:
        """Make it, for this user alone to write and for workers to look into.

        Raises:
            PermissionDenied: this process may not.

        """
        try:
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        except PermissionError as error:
            raise PermissionDenied(
                f"can't make {self.path}", hint=f"run as root, or set {VARIABLE}"
            ) from error

    @property
    def control(self) -> Path:
        """Path of the control socket."""
        return self.path / "control.sock"

    def notify(self, number: int) -> Path:
        """Path of a generation's notify socket."""
        return self.path / f"notify-{number}.sock"

    def drain(self, number: int) -> Path:
        """Path of a generation's drain file."""
        return self.path / f"drain-{number}"

    def set_draining(self, number: int, *, draining: bool) -> None:
        """Write a generation's drain file; workers have it mapped, so it is written in place."""
        descriptor = os.open(self.drain(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(descriptor, b"\1" if draining else b"\0", 0)
        finally:
            os.close(descriptor)

    def write(self, number: int, workers: dict[int, ProcessId]) -> None:
        """Record a generation's processes."""
        record = {
            "workers": [
                {"worker": worker, "pid": process.pid, "started": process.started}
                for worker, process in sorted(workers.items())
            ]
        }
        fresh = self.path / f".generation-{number}.json"
        fresh.write_text(json.dumps(record), encoding="utf-8")
        fresh.replace(self.path / f"generation-{number}.json")

    def read(self) -> dict[int, dict[int, ProcessId]]:
        """Recorded processes by generation and worker; unreadable records count as empty."""
        found: dict[int, dict[int, ProcessId]] = {}
        if not self.path.is_dir():
            return found
        for entry in self.path.iterdir():
            matched = _RECORD.fullmatch(entry.name)
            if not matched:
                continue
            try:
                workers = json.loads(entry.read_text(encoding="utf-8"))["workers"]
                found[int(matched[1])] = {
                    int(w["worker"]): ProcessId(int(w["pid"]), int(w["started"])) for w in workers
                }
            except (OSError, ValueError, KeyError, TypeError):
                found[int(matched[1])] = {}
        return found

    def forget(self, number: int) -> None:
        """Remove all that is there of a generation."""
        for path in (
            self.path / f"generation-{number}.json", self.notify(number), self.drain(number)
        ):  # fmt: skip
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.path, ignore_errors=True)
