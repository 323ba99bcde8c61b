"""How long the lab waits: longer where all is slow, as in a machine that is emulated.

What experiments count as lost depends on how long they wait for it. SOCKWAY_LAB_PATIENCE=20 has
them wait twenty times as long; nothing else changes, and what is lost stays lost.
"""

from __future__ import annotations

import os
from typing import Final

from sockway.errors import ConfigError

VARIABLE: Final = "SOCKWAY_LAB_PATIENCE"


def patient(seconds: float) -> float:
    """Return how long to wait here for what takes at most `seconds` on an ordinary machine.

    Raises:
        ConfigError: SOCKWAY_LAB_PATIENCE is no number of 1 or more.

    """
    text = os.environ.get(VARIABLE, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1 <= factor < float("inf"):
        raise ConfigError(f"{VARIABLE}={text!r} is no factor", hint="a number of 1 or more")
    return seconds * factor


__all__ = ["VARIABLE", "patient"]
