"""From results of checks to what shall be done: thresholds, and failing open.

No input or output, no clock: what is here can be tested by giving it results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass
class Judgement:
    """What is known of one backend."""

    up: bool | None = None
    """None: no check has ended yet."""
    streak: int = 0
    """Results in a row that contradict `up`."""
    reason: str = ""
    """Why the last check failed; empty if it did not."""
    latency: float = 0.0
    """Seconds that the last check took."""
    since: int = 0
    """A number that grows with each change: who fell first has the least."""


@dataclass
class PoolHealth:
    """The backends of one pool."""

    rise: int
    """Successes in a row that bring a backend back."""
    fall: int
    """Failures in a row that take it out."""
    max_down: float
    """Largest share of the pool that is taken out, 0 to 1."""
    judgements: dict[str, Judgement] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()
    """Backends that get no new flows anyway: they are nobody's reserve."""
    _changes: int = 0

    def keep(
        self, backends: Iterable[str], failing: Iterable[str] = (), idle: Iterable[str] = ()
    ) -> None:
        """Have just these backends.

        Args:
            backends: their names.
            failing: those of them that begin as down, if they are new.
            idle: those of them that get no new flows, whatever checks say.

        """
        known, down = frozenset(backends), set(failing)
        self.idle = known & frozenset(idle)
        for gone in self.judgements.keys() - known:
            del self.judgements[gone]
        for name in sorted(known - self.judgements.keys()):
            self.judgements[name] = Judgement(up=False if name in down else None)

    def add(self, backend: str, reason: str | None, latency: float) -> bool:
        """Take the result of a check; whether the judgement changed.

        Args:
            backend: its name.
            reason: why it failed; None if it succeeded.
            latency: seconds that it took.

        """
        judgement = self.judgements.get(backend)
        if judgement is None:  # it was taken out of the pool meanwhile
            return False
        succeeded = reason is None
        judgement.reason, judgement.latency = reason or "", latency
        if judgement.up is succeeded:
            judgement.streak = 0
            return False
        judgement.streak += 1
        # What was never seen to work is believed at its first success.
        needed = 1 if judgement.up is None and succeeded else self.rise if succeeded else self.fall
        if judgement.streak < needed:
            return False
        self._changes += 1
        judgement.up, judgement.streak, judgement.since = succeeded, 0, self._changes
        return True

    @property
    def down(self) -> Sequence[str]:
        """Backends that fail, those that fell first at the front."""
        failing = [name for name, j in self.judgements.items() if j.up is False]
        return sorted(failing, key=lambda name: (self.judgements[name].since, name))

    @property
    def serving(self) -> frozenset[str]:
        """Backends that new flows would go to, did none of them fail; all if there is none."""
        known = frozenset(self.judgements)
        return known - self.idle or known

    @property
    def bearable(self) -> int:
        """How many of those that serve may be out at once."""
        return math.floor(self.max_down * len(self.serving) + 1e-9)


def taken_out(pools: Iterable[PoolHealth]) -> dict[str, list[PoolHealth]]:
    """Backends to be taken out, and the pools whose checks say so: no more than each can bear.

    When more of a pool fail than `max_down`, the fault is likely the check's or the network's: the
    rest is kept, for a server that may answer is better than none (fail open). A backend of several
    pools is one machine, which is out in all of them or in none.
    """
    pools = list(pools)
    room = [pool.bearable for pool in pools]
    out: dict[str, list[PoolHealth]] = {}
    for pool in pools:
        for name in pool.down:
            if name in out:
                out[name].append(pool)
                continue
            loses = [at for at, each in enumerate(pools) if name in each.serving]
            if all(room[at] for at in loses):
                out[name] = [pool]
                for at in loses:
                    room[at] -= 1
    return out


__all__ = ["Judgement", "PoolHealth", "taken_out"]
