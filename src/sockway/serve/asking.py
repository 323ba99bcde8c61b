"""The other end of the control socket: how a command asks a supervisor. See `control`.

Apart from the server, because it needs no asyncio, which costs a command 40 ms at its start.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sockway import errors
from sockway.errors import NotFoundError, SockwayError


def request(path: Path, command: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Send a command and give each line of the answer; the last one has `ok`.

    Raises:
        NotFoundError: no supervisor listens there, or it ended meanwhile.
        SockwayError: what the supervisor raised, as the same class.

    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            raise NotFoundError(
                f"no supervisor is running for service {path.parent.name!r}",
                hint="start it with `sockway serve`; `sockway status` shows what is pinned",
            ) from None
        sock.sendall(json.dumps(command).encode() + b"\n")
        with sock.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if message.get("ok") is False:
                    raise _error(message)
                yield message
                if "ok" in message:
                    return
    raise NotFoundError("the supervisor ended before it answered", hint="look at its own output")


def _error(message: dict[str, Any]) -> SockwayError:
    kind = getattr(errors, str(message.get("kind")), SockwayError)
    if not (isinstance(kind, type) and issubclass(kind, SockwayError)):
        kind = SockwayError
    made: SockwayError = kind(str(message.get("error")), hint=message.get("hint"))
    if output := message.get("output"):
        vars(made)["output"] = output
    return made
