"""What a registry of server IDs holds: records without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

State = Literal["assigned", "retiring", "quarantined"]
"""`assigned`: it is in force; `retiring`: nobody may stamp with it any more, and balancers still
know it; `quarantined`: balancers forget it, and nobody else gets it yet."""

MOST_BITS: Final = 24
DAY: Final = 86_400.0


@dataclass(frozen=True)
class Rules:
    """How a registry gives IDs and takes them back."""

    bits: int = MOST_BITS
    """IDs are below two to the power of this: 8 for each octet of `server_id_length`."""
    quarantine: float = 7 * DAY
    """Seconds from an ID's retirement until another backend may get it."""
    drain: float = 3600.0
    """Seconds of these in which balancers still know it."""

    @property
    def highest(self) -> int:
        """The highest ID that is given."""
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class Facts:
    """What there is once in a registry."""

    registry: str
    """Its own name: random, and the same in its copies."""
    revision: int = 0
    """Counts changes that balancers have to learn."""
    clock: float = 0.0
    """The latest time that it has seen (Unix time): its own never goes back."""
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True)
class Entry:
    """A server ID and whose it is."""

    server_id: int
    name: str
    """Of the backend."""
    state: State
    revision: int
    """From which on balancers know the ID; of a quarantined one, from which on they don't."""
    assigned_at: float
    retired_at: float | None = None
    tellers: tuple[str, ...] = ()
    """Who tells the ID to clients: what stamps, and where."""


@dataclass(frozen=True)
class Report:
    """What a balancer has in force."""

    balancer: str
    revision: int
    reported_at: float
    carries: Mapping[str, tuple[str, ...]] | None = None
    """By VIP with stamps: names of backends whose IDs lead there; None: it did not say."""
    by_hand: Mapping[str, int] = field(default_factory=dict)
    """Backends whose IDs are written in its file, and these."""


@dataclass(frozen=True)
class Revision:
    """A change, for the record."""

    revision: int
    token: str
    """Random: tells revisions of the same number apart that copies of a registry gave."""
    time: float
    change: str


__all__ = ["DAY", "MOST_BITS", "Entry", "Facts", "Report", "Revision", "Rules", "State"]
