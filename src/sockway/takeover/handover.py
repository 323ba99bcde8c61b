"""What two processes say to each other when one takes over from the other.

A worker listens at ``WORKER.control`` in the common directory. Its successor connects, and asks
first for the sockets (``sockets``: answered with the VIPs as JSON, and the descriptors), then, when
it is ready, for the reading (``handover``: the old one stops reading and accepting, and answers
with its flows). It stays connected: the end of the connection tells each of the other's end. A
successor that is succeeded itself says so (``succeeded``), so that its end means nothing then.

Each message is a line of JSON.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

MOST_SOCKETS: Final = 64
_PATIENCE: Final = 5.0
"""Seconds that a process has for an answer; one that takes longer is as good as gone."""
_CHUNK: Final = 1 << 16


@dataclass
class Taken:
    """What a process has from the one before."""

    urls: list[str]
    sockets: list[socket.socket]
    connection: socket.socket = field(repr=False)


def control_path(directory: Path, worker: int) -> Path:
    """Where a worker is asked."""
    return directory / f"{worker}.control"


def ask_for_sockets(directory: Path, worker: int) -> Taken | None:
    """Get the sockets of the worker with this number; None if there is none, or none that answers.

    A process that listens and says nothing in time is as good as gone.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_PATIENCE)
    descriptors: list[int] = []
    try:
        connection.connect(str(control_path(directory, worker)))
        connection.sendall(b'{"ask": "sockets"}\n')
        line = b""
        while not line.endswith(b"\n"):
            chunk, found, _flags, _ = socket.recv_fds(connection, _CHUNK, MOST_SOCKETS)
            descriptors += found
            line += chunk or b"\n"  # the end: not JSON, then
        urls = list(json.loads(line)["urls"])
        pairs = [*zip(urls, descriptors, strict=True)]
    except (OSError, ValueError, KeyError):
        for descriptor in descriptors:
            os.close(descriptor)
        connection.close()
        return None
    return Taken(urls, [socket.socket(fileno=fd) for _, fd in pairs], connection)


def ask_for_handover(connection: socket.socket) -> dict[str, Any]:
    """Have the old process stop; its flows by VIP. Empty if it is gone, or does not answer."""
    deadline = time.monotonic() + _PATIENCE
    parts: list[bytes] = []
    try:
        connection.sendall(b'{"ask": "handover"}\n')
        while not parts or not parts[-1].endswith(b"\n"):
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = connection.recv(_CHUNK)
            if not chunk:
                return {}
            parts.append(chunk)
        flows: dict[str, Any] = json.loads(b"".join(parts))["flows"]
    except (OSError, ValueError, KeyError):
        return {}
    return flows


@dataclass
class Answers:
    """What a process does when it is asked."""

    sockets: Callable[[], tuple[list[str], list[int]]]
    """The VIPs and their descriptors."""
    handover: Callable[[], dict[str, Any]]
    """Stop reading and accepting; the flows by VIP."""
    resume: Callable[[], None]
    """The successor is dead: go on."""


class Conversation:
    """The old process's end of a takeover."""

    def __init__(self, connection: socket.socket, answers: Answers) -> None:
        """Nothing was asked yet."""
        self.connection = connection
        self.handed_over = False
        self._answers = answers
        self._succeeded = False
        self._rest = b""

    def read(self) -> bool:
        """Answer what was asked; False if this is over."""
        try:
            chunk = self.connection.recv(_CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            chunk = b""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        try:
            for line in lines:
                self._answer(json.loads(line))
        except (OSError, ValueError, AttributeError):
            chunk = b""
        if not chunk:
            self.connection.close()
            if self.handed_over and not self._succeeded:
                self.handed_over = False
                self._answers.resume()
        return bool(chunk)

    def _answer(self, message: dict[str, Any]) -> None:
        if message.get("say") == "succeeded":
            self._succeeded = True
            return
        # Flows may be more than fits into the buffer.
        self.connection.settimeout(_PATIENCE)
        if message.get("ask") == "sockets":
            urls, descriptors = self._answers.sockets()
            socket.send_fds(
                self.connection, [json.dumps({"urls": urls}).encode() + b"\n"], descriptors
            )
        elif message.get("ask") == "handover" and not self.handed_over:
            self.handed_over = True
            flows = self._answers.handover()
            self.connection.sendall(json.dumps({"flows": flows}).encode() + b"\n")
        self.connection.setblocking(False)


def listen(directory: Path, worker: int) -> socket.socket:
    """Be the one whom this worker's successor asks, instead of who was it until now."""
    path = control_path(directory, worker)
    new = path.with_suffix(f".{os.getpid()}")
    new.unlink(missing_ok=True)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.setblocking(False)
    control.bind(str(new))
    control.listen(8)
    new.rename(path)
    return control
