"""The flow table as the control plane sees it: who owns how many flows, and when they were seen.

The table is read where it lies, in the kernel's memory (the map is mapped), without a look-up per
entry. What is read may change under the reader: counts are of about now.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

from sockway.sockets import layout
from sockway.sockets.state import RouterState

_TICK_NS: Final = 1 << 30
_RUN: Final = 4096
"""Entries copied at a time."""


def flows_by_generation(state: RouterState, seen_within: float | None = None) -> Counter[int]:
    """Live flows per generation octet (a generation's number modulo 256).

    Args:
        state: the service's.
        seen_within: count only flows with a packet in the last so many seconds; without it,
            all that have not timed out.

    """
    by_id = layout.constant("flow_seen", "FLOW_BY_ID")
    mask = layout.constant("flow_seen", "FLOW_TICK_MASK")
    limits = (int(state.config.flow_timeout), int(state.config.id_timeout))
    if seen_within is not None:
        ticks = max(1, round(seen_within * 1e9 / _TICK_NS))
        limits = (min(limits[0], ticks), min(limits[1], ticks))
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // _TICK_NS
    found: Counter[int] = Counter()
    with state.maps["flows"].mmap_bytes() as memory:
        words = memory.cast("B").cast("Q")
        for start in range(0, len(words), _RUN):
            for word in filter(None, words[start : start + _RUN].tolist()):
                seen = word >> 16
                if ((now - seen) & mask) <= limits[bool(seen & by_id)]:
                    found[word >> 8 & 0xFF] += 1
        words.release()
    return found
