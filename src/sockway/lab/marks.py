"""Names of what an experiment makes on the host, by which its run finds what a killed one left.

Control groups, stamps and temporary files have them; labs have directories with the mark instead.
"""

from __future__ import annotations

import os
from typing import Final

RUN_VARIABLE: Final = "SOCKWAY_LAB_RUN"
"""Environment variable: the mark of the run of experiments that a process belongs to."""


def prefix(mark: str | None = None) -> str:
    """What names begin with in a run, this process's unless given; elsewhere, of this process."""
    return f"sockway-lab-{mark or os.environ.get(RUN_VARIABLE) or os.getpid()}-"


__all__ = ["RUN_VARIABLE", "prefix"]
