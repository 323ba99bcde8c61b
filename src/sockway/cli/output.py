"""How commands speak: one error line with its way out, exit codes, JSON or text.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | it was tried and failed: a release that did not come about, a missing feature |
| 2 | usage: options, files, VIPs that can't be used |
| 3 | there is no such service, generation or supervisor |
| 4 | another process is changing it, or it is running already |
| 5 | the kernel or its permissions don't allow it |
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sockway.errors import (
    BusyError,
    ConfigError,
    KernelError,
    MissingExtra,
    NotFoundError,
    SockwayError,
)
from sockway.extras import clear_imports

if TYPE_CHECKING:
    from rich.console import Console

CODES: Final[tuple[tuple[type[SockwayError], int], ...]] = (
    (ConfigError, 2),
    (NotFoundError, 3),
    (BusyError, 4),
    (MissingExtra, 1),
    (KernelError, 5),
    (SockwayError, 1),
)
"""Exit codes by error, the first that fits."""
UNEXPECTED: Final = 70
"""Exit code of what should not have happened (EX_SOFTWARE of sysexits.h)."""

_PIPE_WIDTH: Final = 200
"""Columns where nobody's window is the limit: a table that is cut is of no use to grep."""


@cache
def console() -> Console:
    """Return the terminal as rich has it; importing rich takes 70 ms, so not before it is used."""
    from rich.console import Console  # noqa: PLC0415

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


class _Out:
    """Standard output with tables and colours."""

    @staticmethod
    def print(*things: Any, **how: Any) -> None:
        """Print as `rich.console.Console.print` does."""
        console().print(*things, **how)


out: Final = _Out()


def write(text: str) -> None:
    """Print one line of plain text on standard output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass
class Settings:
    """Options of the command as a whole."""

    debug: bool = False
    """Show tracebacks."""


settings: Final = Settings()


def exit_code(error: SockwayError) -> int:
    """The exit code that stands for an error."""
    return next(code for kind, code in CODES if isinstance(error, kind))


@contextlib.contextmanager
def clear_errors(*, as_json: bool = False) -> Iterator[None]:
    """End the command with one clear error where the block raises."""
    try:
        with clear_imports():
            yield
    except SockwayError as error:
        if settings.debug:
            raise
        _show(error, as_json=as_json)
        raise SystemExit(exit_code(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Who reads this has seen enough. What is left in the buffer must not be tried again.
        sys.stdout = None
        raise SystemExit(0) from None


def _show(error: SockwayError, *, as_json: bool) -> None:
    output: list[str] = getattr(error, "output", [])
    if as_json:
        print_json(
            {
                "ok": False,
                "error": error.message,
                "hint": error.hint,
                "kind": type(error).__name__,
                **({"output": output} if output else {}),
            }
        )
    lines = [f"sockway: error: {error.message}"]
    if error.hint:
        lines.append(f"  hint: {error.hint}")
    if output:
        lines += ["  it printed last:", *(f"  | {line}" for line in output)]
    sys.stderr.write("\n".join(lines) + "\n")


def print_json(value: Any) -> None:
    """One JSON value on standard output, on a line of its own."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """Show that the block waits for balancers, where somebody sees it."""
    if seconds and sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415

        with Console(stderr=True).status(f"waiting for balancers, {seconds:g} seconds at most"):
            yield
    else:
        yield


def say(text: str) -> None:
    """One line for people, on standard error."""
    sys.stderr.write(f"sockway: {text}\n")
    sys.stderr.flush()


def sentence(event: dict[str, Any]) -> str:
    """A supervisor's step in words."""
    facts = {k: v for k, v in event.items() if k not in {"step", "generation", "worker"} and v}
    who = f"generation {event['generation']}" if event.get("generation") else "the service"
    if "worker" in event:
        who = f"worker {event['worker']} of {who}"
    told = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in facts.items())
    return f"{who}: {event['step'].replace('_', ' ')}{f' ({told})' if told else ''}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
