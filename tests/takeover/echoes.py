"""Generations of the UDP echo under takeover, started one by one in a namespace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from sockway.kernel import Netns

VIP = "udp://[::]:4433?flow=tuple"
_STARTER = """
import time
from sockway.takeover import run
{first}
run.main()
"""


class Echoes:
    """Generations of the UDP echo, and their clients."""

    def __init__(self, netns: Netns, directory: Path, stack: ExitStack) -> None:
        """None yet."""
        self.netns = netns
        self.directory = directory
        self.stack = stack

    def start(self, generation: int, *, first: str = "", urls: str = VIP) -> subprocess.Popen[str]:
        """Start one, which runs Python code before all else; it may have taken over already."""
        env = os.environ | {
            "TAKEOVER_LISTEN": urls,
            "TAKEOVER_DIRECTORY": str(self.directory),
            "SOCKWAY_GENERATION": str(generation),
            "SOCKWAY_WORKER": "0",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-c", _STARTER.format(first=first)]
        process = self.netns.run(
            lambda: subprocess.Popen(
                [*command, "-m", "sockway.lab.servers.echo"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                text=True,
            )
        )
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        return process

    def serving(
        self, generation: int, *, first: str = "", urls: str = VIP
    ) -> subprocess.Popen[str]:
        """Start one, and wait until it has taken over."""
        process = self.start(generation, first=first, urls=urls)
        assert says(process) == "takeover: serving"
        return process

    def slow(self, generation: int, seconds: float) -> subprocess.Popen[str]:
        """Start one that has its sockets, and serves so much later."""
        process = self.start(generation, first=_SLOW.format(seconds=seconds))
        assert says(process) == "has the sockets"
        return process

    def client(self, port: int = 4433) -> socket.socket:
        """A new flow."""
        sock = self.netns.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        self.stack.enter_context(sock)
        sock.settimeout(3)
        sock.connect(("::1", port))
        return sock

    def new_flows(self, count: int = 30, port: int = 4433) -> set[int]:
        """Who answers flows that nobody knows."""
        return {answerer(self.client(port)) for _ in range(count)}


_SLOW = """
serve = run.Agent.serve
def slow(*arguments):
    print("has the sockets", flush=True)
    time.sleep({seconds})
    serve(*arguments)
run.Agent.serve = slow
"""


def answerer(sock: socket.socket) -> int:
    """The generation that a flow is answered by."""
    sock.send(b"x")
    return int(sock.recv(100).split()[1])


def says(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip()
