"""Start a Python server that takes over from the process before it, if there is one.

It imports what takes long first, and then gets the sockets: from the process before, or by binding
them. They are passed as descriptors 3 and up, as Sockway does.

``TAKEOVER_LISTEN='URL...' TAKEOVER_DIRECTORY=... python -m sockway.takeover.run -m MODULE [...]``,
or the path of a Python file instead of ``-m MODULE``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import runpy
import socket
import sys
from pathlib import Path
from typing import Final

from sockway.takeover import asyncio_side
from sockway.takeover.agent import DIRECTORY, Agent
from sockway.takeover.handover import Taken, ask_for_sockets
from sockway.takeover.starting import FIRST_FD, HIGH_FD, bind, import_first, pass_on, vip_key

LISTEN: Final = "TAKEOVER_LISTEN"
SERVING: Final = "takeover: serving"
"""The line that says that this process reads and accepts now, and the one before no more."""
NOTICE: Final = "X_TAKEOVER"
"""The same for who listens at NOTIFY_SOCKET: this field, with the value `serving`."""

_agents: list[Agent] = []


def agent_here() -> Agent | None:
    """The agent of this process, for servers that have a loop of their own."""
    return _agents[0] if _agents else None


def main() -> None:
    """Import, get the sockets, and run the server."""
    arguments = sys.argv[1:]
    module = arguments[1] if arguments[0] == "-m" else None
    rest = arguments[2:] if module else arguments[1:]
    import_first(module if module and _is_package(module) else None, rest)
    urls = os.environ.pop(LISTEN).split()
    directory = Path(os.environ.pop(DIRECTORY))
    taken = ask_for_sockets(directory, int(os.environ["SOCKWAY_WORKER"]))
    sockets = _sockets(urls, taken)
    if taken is not None:
        # Out of the way of what is passed on.
        high = fcntl.fcntl(taken.connection, fcntl.F_DUPFD_CLOEXEC, HIGH_FD)
        taken.connection.close()
        taken.connection = socket.socket(fileno=high)
    pass_on(sockets, os.environ.get("LISTEN_FDNAMES"))
    generation, worker = int(os.environ["SOCKWAY_GENERATION"]), int(os.environ["SOCKWAY_WORKER"])
    agent = Agent(directory, generation, worker, urls, taken)
    agent.sockets([FIRST_FD + number for number in range(len(urls))])
    agent.on_serving = _tell
    _agents.append(agent)
    asyncio_side.install(agent)
    if module is not None:
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


def _is_package(module: str) -> bool:
    # A module that is no package is the server itself, and may start when it is imported.
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(module)
        return found is not None and found.submodule_search_locations is not None
    return False


def _sockets(urls: list[str], taken: Taken | None) -> list[socket.socket]:
    """Those that the process before has, and new ones for VIPs that it does not have."""
    there = {}
    if taken is not None:
        there = dict(zip(map(vip_key, taken.urls), taken.sockets, strict=True))
    sockets = []
    for url in urls:
        try:
            # By key: options may have changed, and it is the same socket all the same.
            key = vip_key(url)
            sockets.append(there.pop(key) if key in there else bind(url))
        except OSError as error:
            sys.exit(f"takeover: can't bind {url}: {error.strerror}")
    for unwanted in there.values():
        unwanted.close()
    return sockets


def _tell() -> None:
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        print(SERVING, flush=True)  # noqa: T201 - whoever started it waits for the line
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(f"{NOTICE}=serving".encode(), path)


if __name__ == "__main__":
    # As a module that others can import, not as `__main__`: they look for the agent here.
    from sockway.takeover.run import main as run_main

    run_main()
