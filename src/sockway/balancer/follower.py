"""The program that takes what is for no VIP: somebody else's, called by the balancer's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sockway.balancer.state import BalancerState
from sockway.errors import KernelError, NotFoundError, StateError
from sockway.kernel import Program


@contextlib.contextmanager
def opened(pin: Path | None, *, missing_ok: bool = False) -> Iterator[Program | None]:
    """It, by its pin; None without one.

    Raises:
        NotFoundError: there is no such pin, and that is not `missing_ok`.

    """
    with contextlib.ExitStack() as stack:
        found = None
        if pin is not None:
            try:
                found = stack.enter_context(Program.from_pin(pin))
            except NotFoundError:
                if not missing_ok:
                    raise
        yield found


def follow(state: BalancerState, program: Program | None) -> None:
    """Have it called from now on; with None all stays as it is.

    Raises:
        StateError: it is not made for the frames that the balancer's program takes.

    """
    if program is None:
        return
    try:
        state.maps["next"][0] = program.fd
    except KernelError as error:
        section, has = ("xdp.frags", "a") if state.is_jumbo else ("xdp", "no")
        raise StateError(
            f"program {program.name} can't follow on the balancer's: the kernel wants both made "
            "for frames of several buffers, or none",
            hint=f"it must be in section {section}, as {has} native interface has a large MTU",
        ) from error


__all__ = ["follow", "opened"]
