"""Work done in a child process: without rights, or at the same time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NOBODY = 65534


def in_child(work: Callable[[], object]) -> str:
    """Do something in a forked child; returns its result, or `ErrorType: message`, as text.

    The child imports nothing that is not imported by now: the interpreter's files may be out of
    its reach.
    """
    with running(work) as (_pid, answer):
        return answer()


def as_nobody(work: Callable[[], object]) -> str:
    """The same as a user without any rights."""

    def give_up() -> object:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return work()

    return in_child(give_up)


@contextmanager
def running(work: Callable[[], object]) -> Iterator[tuple[int, Callable[[], str]]]:
    """A child that does something meanwhile; gives its PID and a function that awaits its words."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _tell(work, writing)
    os.close(writing)

    def answer() -> str:
        with open(reading, encoding="utf-8", closefd=False) as pipe:
            return pipe.read()

    try:
        yield pid, answer
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _tell(work: Callable[[], object], writing: int) -> None:
    try:
        words = str(work())
    except BaseException as error:  # noqa: BLE001 - the parent judges it
        words = f"{type(error).__name__}: {error}"
    try:
        os.write(writing, words.encode())
    finally:
        os._exit(0)
