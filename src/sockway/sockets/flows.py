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


def flows_by_generation(state: RouterState, seen_within: float | None = None) -> Counter[int]:
    """Live flows per generation octet (a generation's number modulo 256).

    Args:
        state: the service's.
        seen_within: count only flows with a packet in the last so many seconds; without it,
            all that have not timed out.

    """
    bucket = layout.struct("flow_bucket")
    size = _sizeof(bucket)
    ways = layout.limit("FLOW_WAYS")
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
        times = memory.cast("B").cast("I")
        first_time = bucket.seen.offset // 4
        for start in range(0, len(words), size // 8):
            run = words[start : start + ways].tolist()
            if not any(run):
                continue
            seen = times[start * 2 + first_time : start * 2 + first_time + ways].tolist()
            for word, last in zip(run, seen, strict=True):
                if word and ((now - last) & mask) <= limits[bool(last & by_id)]:
                    found[word >> 8 & 0xFF] += 1
        words.release()
        times.release()
    return found


def _sizeof(structure: type) -> int:
    import ctypes  # noqa: PLC0415

    return ctypes.sizeof(structure)
