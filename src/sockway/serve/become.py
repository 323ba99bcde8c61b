"""The last step of a new process before it is the worker: run by path, imports nothing of Sockway.

    python -I -S become.py {"pid_file": ..., ...} PROGRAM ARGUMENT...

The supervisor starts it with posix_spawn, in a session of its own, the sockets at 3, 4, ... What
posix_spawn can't do is done here: LISTEN_PID (the process's own number), the record of who it is,
the user, the directory.

If the supervisor is gone by now, nobody would know of this process: then it ends. Its record is
written before that check, so whoever has passed the check is found by the next supervisor.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

NOT_STARTED = 127
"""Exit status where the program could not be run, as shells have it."""


def main() -> None:
    """Become the worker; on failure say why on standard error and exit with 127."""
    plan: dict[str, Any] = json.loads(sys.argv[1])
    command = sys.argv[2:]
    try:
        os.closerange(plan["first_free_fd"], os.sysconf("SC_OPEN_MAX"))
        write_record(plan["pid_file"])
        if os.getppid() != plan["supervisor"]:
            sys.exit(NOT_STARTED)
        if plan["directory"]:
            os.chdir(plan["directory"])
        if plan["user"]:
            os.setgroups(plan["user"]["groups"])
            os.setgid(plan["user"]["gid"])
            os.setuid(plan["user"]["uid"])
        os.environ["LISTEN_PID"] = str(os.getpid())
        # Python ignores these, and what is ignored stays so across exec.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - its purpose
    except OSError as error:
        at = f" {error.filename}" if error.filename else ""
        sys.stderr.write(f"sockway: can't run {command[0]}: {error.strerror}{at}\n")
        sys.exit(NOT_STARTED)


def write_record(path: str) -> None:
    """Write this process's number and start time, whole or not at all."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        # Field 22 of proc(5); the name in parentheses may hold anything, so count behind it.
        started = file.read().rpartition(")")[2].split()[19]
    fresh = f"{path}.{os.getpid()}"
    with open(fresh, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(f"{os.getpid()} {started}\n")
    os.rename(fresh, path)  # noqa: PTH104 - no pathlib here: this starts before each worker


if __name__ == "__main__":
    main()
