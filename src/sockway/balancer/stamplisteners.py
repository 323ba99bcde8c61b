"""Servers that listened before their port was stamped (see `bpf/stamp_listeners.bpf.c`)."""

from __future__ import annotations

import contextlib
from typing import Final

from sockway.errors import KernelError
from sockway.kernel import BpfObject, Map, ObjectLayout

LAYOUT: Final = ObjectLayout("stamp_listeners")


def wake(ports: Map) -> None:
    """Have the listeners of this network namespace tell their ID on SYN-ACKs from now on.

    Kernels before 6.12 can't; there they tell it when a client asks.

    Args:
        ports: of the stamp program.

    """
    with (
        contextlib.suppress(KernelError),
        BpfObject.open(LAYOUT.source, name=LAYOUT.name) as made,
    ):
        made.maps["ports"].reuse(ports)
        made.load()
        with made.program("listeners") as program:
            program.iterate()


__all__ = ["wake"]
