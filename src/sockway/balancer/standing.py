"""How the backends of a balancer stand: what `sockway balancer status` shows."""

from __future__ import annotations

from dataclasses import dataclass

from sockway.balancer.layout import flag
from sockway.balancer.ledger import Ledger
from sockway.balancer.state import BalancerState


@dataclass(frozen=True)
class BackendStatus:
    """A backend of a pool as it stands."""

    name: str
    address: str
    weight: int
    state: str
    """`up`, `drained` (it keeps the flows that it has and gets none), `failing` (by its health
    checks), or `down`."""
    next_hop: bool
    """Whether the way out to it is known."""
    share: float
    """Of the ring's slots, 0 to 1."""


def standing(state: BalancerState, book: Ledger) -> dict[str, list[BackendStatus]]:
    """Return all backends, by pool."""
    resolved = flag("backend_flag", "BACKEND_RESOLVED")
    found: dict[str, list[BackendStatus]] = {}
    for name, pool in book.spec.pool.items():
        place = book.pools[name]
        counts: dict[int, int] = {}
        slots = memoryview(state.slots).cast("B").cast("I")[place.start : place.start + place.size]
        for slot in slots:
            counts[slot & 0xFFFF] = counts.get(slot & 0xFFFF, 0) + 1
        found[name] = [
            BackendStatus(
                backend,
                str(spec.address),
                spec.weight,
                _state_of(book, backend, spec.weight),
                bool(state.backends[book.backends[backend]].flags & resolved),
                counts.get(book.backends[backend], 0) / place.size,
            )
            for backend, spec in pool.backends.items()
        ]
    return found


def _state_of(book: Ledger, backend: str, weight: int) -> str:
    if backend in book.down:
        return "down"
    if backend in book.failing:
        return "failing"
    return "drained" if backend in book.drained or not weight else "up"


__all__ = ["BackendStatus", "standing"]
