"""What two processes say to each other when one takes over from the other.

A worker listens at ``WORKER.control`` in the common directory. Its successor connects, and asks
first for the sockets (``sockets``: answered with the VIPs as JSON, and the descriptors), then, when
it is ready, for the reading (``handover``: the old one stops reading and accepting, and answers
with its flows). It stays connected: the end of the connection tells each of the other's end. A
successor that is succeeded itself says so (``succeeded``), so that its end means nothing then; if
its own successor dies, it means something again (``resumed``).

A process has one successor at a time. Whoever else asks is told ``no``, and must not read: two
that read would have half of the packets each. So must not who gets no answer, or half of one.

Each message is a line of JSON.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

MOST_SOCKETS: Final = 64
_PATIENCE: Final = 5.0
"""Seconds that a process has for an answer."""
_MOMENT: Final = 0.3
"""Seconds in which a socket that refuses may be replaced: who takes over listens a little later."""
_CHUNK: Final = 1 << 16


@dataclass
class Taken:
    """What a process has from the one before."""

    urls: list[str]
    sockets: list[socket.socket]
    connection: socket.socket = field(repr=False)


@dataclass(frozen=True)
class Asker:
    """Who asks for the handover."""

    generation: int
    vips: list[str]
    """By key; the others go."""


class RefusedError(Exception):
    """The old process serves on, or another does: who asked must not."""


def control_path(directory: Path, worker: int) -> Path:
    """Where a worker is asked."""
    return directory / f"{worker}.control"


def ask_for_sockets(directory: Path, worker: int) -> Taken | None:
    """Get the sockets of the worker with this number; None if there is none, or none that answers.

    A process that listens and says nothing in time is as good as gone.
    """
    deadline = time.monotonic() + _MOMENT
    while True:
        try:
            return _ask_for_sockets(directory, worker)
        except ConnectionError:
            if time.monotonic() > deadline:
                return None
            time.sleep(_MOMENT / 10)
        except (OSError, ValueError, KeyError):
            return None


def _ask_for_sockets(directory: Path, worker: int) -> Taken:
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
            if not chunk:
                raise ConnectionResetError
            line += chunk
        urls = list(json.loads(line)["urls"])
        pairs = [*zip(urls, descriptors, strict=True)]
    except (OSError, ValueError, KeyError):
        for descriptor in descriptors:
            os.close(descriptor)
        connection.close()
        raise
    return Taken(urls, [socket.socket(fileno=fd) for _, fd in pairs], connection)


def ask_for_handover(
    taken: Taken, directory: Path, worker: int, asker: Asker
) -> dict[str, list[Any]]:
    """Have the old process stop; its flows by VIP. Empty if it is gone and nobody serves instead.

    Raises:
        RefusedError: it serves on, or may do so.

    """
    try:
        return _ask_for_handover(taken.connection, asker)
    except ConnectionError:
        # It is gone. The one before it may serve again, on the same sockets.
        again = ask_for_sockets(directory, worker)
        if again is None:
            return {}
    for sock in again.sockets:
        sock.close()
    taken.connection.close()
    taken.connection = again.connection
    try:
        return _ask_for_handover(taken.connection, asker)
    except ConnectionError as error:
        raise RefusedError("the processes before it end one after another") from error


def _ask_for_handover(connection: socket.socket, asker: Asker) -> dict[str, list[Any]]:
    deadline = time.monotonic() + _PATIENCE
    parts: list[bytes] = []
    try:
        connection.settimeout(_PATIENCE)
        connection.sendall(json.dumps({"ask": "handover", **asdict(asker)}).encode() + b"\n")
        while not parts or not parts[-1].endswith(b"\n"):
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = connection.recv(_CHUNK)
            if not chunk:
                raise ConnectionResetError
            parts.append(chunk)
        answer = json.loads(b"".join(parts))
        if "no" in answer:
            raise RefusedError(str(answer["no"]))
        flows: dict[str, list[Any]] = answer["flows"]
    except TimeoutError as error:
        raise RefusedError(
            f"the process before did not hand over its flows within {_PATIENCE:g} s"
        ) from error
    except (ValueError, KeyError) as error:
        raise RefusedError("the process before speaks another language") from error
    return flows


def who_serves(directory: Path, worker: int) -> int | None:
    """The generation whose worker with this number serves; None if none says so."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(str(control_path(directory, worker)))
            connection.sendall(b'{"ask": "who"}\n')
            return int(json.loads(connection.recv(_CHUNK))["generation"])
        except (OSError, ValueError, KeyError):
            return None


@dataclass
class Answers:
    """What a process does when it is asked."""

    generation: int
    """Its own."""
    sockets: Callable[[], tuple[list[str], list[int]]]
    """The VIPs and their descriptors."""
    handover: Callable[[Asker], dict[str, list[Any]]]
    """Stop reading and accepting; the flows by VIP. Or raise `RefusedError`, and do nothing."""
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
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            chunk = b""
        if not chunk:
            self.connection.close()
            if self.handed_over and not self._succeeded:
                self.handed_over = False
                self._answers.resume()
        return bool(chunk)

    def _answer(self, message: dict[str, Any]) -> None:
        if "say" in message:
            self._succeeded = message["say"] == "succeeded"
            return
        # Flows may be more than fits into the buffer.
        self.connection.settimeout(_PATIENCE)
        if message.get("ask") == "sockets":
            urls, descriptors = self._answers.sockets()
            socket.send_fds(
                self.connection, [json.dumps({"urls": urls}).encode() + b"\n"], descriptors
            )
        elif message.get("ask") == "who":
            self._send({"generation": self._answers.generation})
        elif message.get("ask") == "handover" and not self.handed_over:
            asker = Asker(int(message["generation"]), list(message["vips"]))
            self.handed_over = True
            try:
                flows = self._answers.handover(asker)
            except RefusedError as error:
                self.handed_over = False
                self._send({"no": str(error)})
            else:
                self._send({"flows": flows})
        self.connection.setblocking(False)

    def _send(self, message: dict[str, Any]) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")


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
