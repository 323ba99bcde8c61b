"""Servers that listened before their port was stamped (see `bpf/stamp_listeners.bpf.c`)."""

from __future__ import annotations

from typing import Final

from sockway.errors import KernelError
from sockway.kernel import BpfObject, Map, ObjectLayout

LAYOUT: Final = ObjectLayout("stamp_listeners")


def wake(ports: Map) -> bool:
    """Have the listeners of this network namespace tell their ID on SYN-ACKs from now on.

    Args:
        ports: of the stamp program.

    Returns:
        Whether the kernel could: before 6.12 it can't, and they tell it when they are asked.

    """
    try:
        with BpfObject.open(LAYOUT.source, name=LAYOUT.name) as made:
            made.maps["ports"].reuse(ports)
            made.load()
            with made.program("listeners") as program:
                program.iterate()
    except KernelError:
        return False
    return True


__all__ = ["wake"]
