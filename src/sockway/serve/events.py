"""What the supervisor tells while it works: one small dictionary for each step.

`step` names what has just been done, `generation` the number where there is one; the other keys
are facts of that step. The command line shows them, tests wait for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
Observer = Callable[[Event], None]
LineSink = Callable[[int, int, str], None]
"""Gets generation, worker and a line that the worker printed."""
