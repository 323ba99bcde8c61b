"""Releases a service twice and dies, or halts, at a step: `crash_child.py STEP ACTION LEASH`.

Workers are processes of their own, which serve until the leash, a pipe, is let go.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from sockway import Service, Vip
from sockway.kernel import BpfObject, Map
from sockway.sockets import state as router_state
from sockway.sockets.generation import Generation
from sockway.sockets.state import RouterState
from sockway.sockets.vips import VipTable

VIPS = ("tcp://127.0.0.1:5000", "tcp://127.0.0.1:5001", "udp://127.0.0.1:5000?flow=quic")
WORKER = Path(__file__).with_name("crash_worker.py")

CREATING = ("loading", "loaded", "pinning", "pinned", "created")
PREPARING = ("locked", "vips", "claimed", "bound", "filled", "started", "publishing")
AFTER = ("published", "released", "unlocked", "retiring", "taking_out", "taken_out")


class Steps:
    """Counts steps, as `NUMBER:STEP` from the first generation on, and acts at one."""

    def __init__(self, wanted: str, action: str) -> None:
        """Wait for this one."""
        self._wanted = wanted
        self._action = action
        self.number = 0

    def reach(self, step: str) -> None:
        """Do what was asked for, if this is the step."""
        if f"{self.number}:{step}" != self._wanted:
            return
        sys.stdout.write(f"{step}\n")
        sys.stdout.flush()
        if self._action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()

    def before(self, owner: Any, name: str, step: str) -> None:
        """Reach the step when this is called."""
        function = getattr(owner, name)

        def stepping(*args: Any, **named: Any) -> Any:
            self.reach(step)
            return function(*args, **named)

        setattr(owner, name, stepping)

    def after(self, owner: Any, name: str, step: str) -> None:
        """Reach the step when this returns."""
        function = getattr(owner, name)

        def stepping(*args: Any, **named: Any) -> Any:
            result = function(*args, **named)
            self.reach(step)
            return result

        setattr(owner, name, stepping)


def release(service: Service, steps: Steps, leash: int) -> None:
    """One release, with a worker process that serves."""
    steps.number += 1
    generation = service.generation(workers=1)
    sockets = [str(s.fileno()) for v, s in generation.sockets(0).items() if v.protocol == "tcp"]
    others = [s.fileno() for v, s in generation.sockets(0).items() if v.protocol == "udp"]
    with subprocess.Popen(
        [sys.executable, "-I", WORKER, str(generation.number), str(leash), *sockets],
        pass_fds=[leash, *map(int, sockets), *others],
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        steps.reach("started")
        old = service.published
        generation.publish()
        steps.reach("unlocked")
        generation.release_sockets(0)
        steps.reach("released")
        if old is not None:
            old.close()
            steps.reach("taken_out")
        worker.returncode = 0  # left to itself


def main() -> None:
    """Release twice, or as far as the step."""
    steps = Steps(*sys.argv[1:3])
    steps.before(BpfObject, "load", "loading")
    steps.after(BpfObject, "load", "loaded")
    steps.after(Map, "pin", "pinning")
    steps.before(router_state, "_rename_unless_taken", "pinned")
    steps.before(Service, "collect", "locked")
    steps.after(VipTable, "write", "vips")
    steps.before(Generation, "_make_arrays", "claimed")
    steps.after(Generation, "_make_arrays", "bound")
    steps.before(Generation, "hold", "filled")
    steps.before(Service, "unlink", "publishing")
    steps.before(Generation, "_give_back_lock", "published")
    steps.before(RouterState, "clear_arrays", "retiring")
    steps.after(RouterState, "clear_arrays", "taking_out")
    leash = int(sys.argv[3])
    service = Service.open("web", [Vip.parse(vip) for vip in VIPS])
    steps.reach("created")
    for _ in range(2):
        release(service, steps, leash)


if __name__ == "__main__":
    main()
