"""The generation's drain flag: one byte in a file that the supervisor made, mapped into memory.

`sockway serve` names the file in SOCKWAY_DRAIN and turns its byte from `0` to `1` when the
generation begins to drain (and back, when it is published again). Reading a mapped byte costs tens
of nanoseconds, so it can be asked for each request.
"""

from __future__ import annotations

import mmap
import os
from functools import cache
from typing import Final

VARIABLE: Final = "SOCKWAY_DRAIN"
CALM: Final = b"0"
DRAINING: Final = b"1"


def draining() -> bool:
    """Whether this process's generation drains; False outside `sockway serve`."""
    flag = _mapped(os.environ.get(VARIABLE))
    return flag is not None and flag[0] == DRAINING[0]


@cache
def _mapped(path: str | None) -> mmap.mmap | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - imported by servers: no pathlib for it
            return mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        # Gone or empty: the supervisor's directory was cleared. Nobody can tell us to drain.
        return None
