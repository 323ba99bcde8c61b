"""The parent's end of a client process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

from sockway.errors import SockwayError
from sockway.lab.tally import Tally

# A tally of a long run is one line of some hundred kilobytes.
LINE_LIMIT = 1 << 25


class LoadError(SockwayError):
    """A client process did not do what it was started for."""


class Load:
    """A running client process; `start` makes it."""

    def __init__(self, kind: str, process: asyncio.subprocess.Process) -> None:
        """Use `start` instead."""
        self.kind = kind
        self.requests = 0
        self.failed = 0
        self._process = process
        self._tally: Tally | None = None
        self._begun = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, kind: str, task: dict[str, Any], *, epoch: float, seconds: float, env: dict[str, str]
    ) -> Load:
        """Start client process ``sockway.lab.load.<kind>`` with *task*, for *seconds* at most."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"sockway.lab.load.{kind}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=env,
            limit=LINE_LIMIT,
        )
        assert process.stdin is not None  # noqa: S101 (a pipe was asked for)
        whole = task | {"epoch": epoch, "seconds": seconds}
        process.stdin.write(json.dumps(whole).encode() + b"\n")
        await process.stdin.drain()
        return cls(kind, process)

    async def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 (a pipe was asked for)
        async for line in self._process.stdout:
            message = json.loads(line)
            if "tally" in message:
                self._tally = Tally.from_json(message["tally"])
                self.requests, self.failed = self._tally.requests, self._tally.failed
            else:
                self.requests, self.failed = message["requests"], message["failed"]
            if self.requests:
                self._begun.set()
        self._begun.set()

    async def began(self) -> None:
        """Wait until the first request is done, or the process has ended without one."""
        await self._begun.wait()

    async def stop(self, patience: float = 60.0) -> Tally:
        """Let the process finish what it has begun, and return its tally.

        Raises `LoadError` if it takes longer than *patience* seconds or ends without one.
        """
        assert self._process.stdin is not None  # noqa: S101 (a pipe was asked for)
        self._process.stdin.close()
        try:
            async with asyncio.timeout(patience):
                await self._reading
                await self._process.wait()
        except TimeoutError:
            await self.kill()
            raise LoadError(f"{self.kind} clients did not stop within {patience:g} s") from None
        if self._tally is None:
            raise LoadError(
                f"{self.kind} clients ended with status {self._process.returncode}",
                hint="their words are on standard error above",
            )
        return self._tally

    async def kill(self) -> None:
        """End the process now; nothing is counted."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._reading.cancel()
