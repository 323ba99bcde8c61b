"""What became of one load in the experiment `scale`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FULL_AT: Final = 3
"""The multiple of the base load that fills the accepting thread."""
LOSS: Final = 0.05
"""Share of the datagrams that may be lost, or left for later, of a load that counts as taken."""
_LEAST: Final = 0.95
"""Of what was to be sent; less, and the generator is the limit."""


@dataclass(frozen=True)
class Point:
    """What became of one load."""

    factor: float
    offered: float
    """Datagrams a second that were to be sent."""
    sent: int
    answered: int
    """Of those that were sent, also after the time in which they were."""
    within: int
    """Answers that came in that time, also to what was sent before."""
    seconds: float
    cpu: float
    """Seconds of CPU time of all processes of the system, in that time."""
    dropped: int = 0
    """Answers for which the clients' own buffers had no room."""

    @property
    def lost(self) -> float:
        """Share of the datagrams sent that was never answered."""
        return 1 - self.answered / self.sent if self.sent else 0.0

    @property
    def rate(self) -> float:
        """Datagrams answered a second.

        What a full buffer held back from before is no answer to this load, and what it holds when
        the time is over was not done in time.
        """
        return min(self.answered, self.within) / self.seconds

    @property
    def taken(self) -> bool:
        """Whether the system kept up with it; what the clients dropped it had answered."""
        return self.rate * self.seconds + self.dropped >= (1 - LOSS) * self.sent

    @property
    def cpu_per_packet(self) -> float | None:
        """Seconds of CPU time for each answer of that time; None if there was none."""
        return self.cpu / self.within if self.within else None

    @property
    def held_back(self) -> bool:
        """Whether the generator did not send what it should."""
        return self.sent < _LEAST * self.offered * self.seconds


__all__ = ["FULL_AT", "LOSS", "Point"]
