from __future__ import annotations

from pathlib import Path

import pytest

from sockway.errors import KernelError
from sockway.kernel import BpfObject
from tests.kernel.conftest import Compile

pytestmark = pytest.mark.root


@pytest.fixture
def adder(compiled: Compile) -> Path:
    """An object with one program of type syscall."""
    return compiled("adder")


def test_a_syscall_program_answers_in_its_context(adder: Path) -> None:
    """It runs once, on a context alone, and what it writes there comes back."""
    with BpfObject.open(adder, name="adder") as opened:
        opened.load()
        with opened.program("add") as add:
            done = add.test_run(None, context=(41).to_bytes(8, "little") + bytes(8))
    assert (done.retval, int.from_bytes(done.data[8:], "little")) == (7, 42)
    assert int.from_bytes(done.data[:8], "little") == 41


def test_a_context_that_is_too_short_is_refused(adder: Path) -> None:
    """The verifier knows how far the program reads: a shorter context never reaches it."""
    with BpfObject.open(adder, name="adder") as opened:
        opened.load()
        with opened.program("add") as add, pytest.raises(KernelError, match="EINVAL"):
            add.test_run(None, context=bytes(8))
