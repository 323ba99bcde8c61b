"""What became of each request, counted so that the processes' counts add up.

A tally is a small value that a client process fills in, sends to its parent as
JSON, and that is merged there with the others'. Beside the plain counts are kept:
when each outcome happened, in bins of a tenth of a second (that is the plot); when
what ended in that way had begun, in such bins, too (so that a failure can be held
against what was done then, however long it took); how long what succeeded took, in a
histogram whose buckets grow by 2 % (that is the p99: exact to 2 %, whatever the
number of requests); and what was due and not even tried.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

BIN_SECONDS = 0.1
NOTES = 50
_GROWTH = math.log(1.02)


class Outcome(StrEnum):
    """How a request, a download or a datagram ended; all but OK are failures."""

    OK = "ok"
    REFUSED = "refused"  # connect() was answered with a reset
    RESET = "reset"  # the connection was reset under the request
    STALE = "stale"  # sent on an idle connection that the server closed; not one byte came
    TIMEOUT = "timeout"
    SHORT = "short"  # the connection ended before the response did
    CORRUPT = "corrupt"  # the body is not what the server meant to send
    STATUS = "status"  # an answer, but not 200
    HANDSHAKE = "handshake"  # QUIC: the connection was never established
    LOST = "lost"  # a datagram that nobody answered
    MISROUTED = "misrouted"  # a datagram that another process than the flow's owner answered
    CLIENT = "client"  # the client's own machine failed, such as no free port


RESETS = (Outcome.REFUSED, Outcome.RESET, Outcome.STALE)


class Histogram:
    """Durations in buckets that grow by 2 %."""

    def __init__(self, buckets: dict[int, int] | None = None) -> None:
        """Start from *buckets* (bucket number to count), or empty."""
        self.buckets: Counter[int] = Counter(buckets or {})

    def add(self, seconds: float) -> None:
        """Count one duration in seconds."""
        micros = max(seconds * 1e6, 1.0)
        self.buckets[int(math.log(micros) / _GROWTH)] += 1

    def quantile(self, share: float) -> float:
        """Duration in seconds below which *share* (0 to 1) of all lie; NaN if there are none."""
        total = self.buckets.total()
        if not total:
            return math.nan
        wanted = share * total
        reached = 0
        for bucket in sorted(self.buckets):
            reached += self.buckets[bucket]
            if reached >= wanted:
                return math.exp((bucket + 0.5) * _GROWTH) / 1e6
        return math.nan  # pragma: no cover  (the last bucket reaches the total)


@dataclass
class Tally:
    """Counts of one client process, or of several merged."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answered_by: Counter[str] = field(default_factory=Counter)  # generation (nginx: pid) -> answers
    bins: dict[str, Counter[int]] = field(default_factory=dict)  # outcome -> bin -> count
    begun: dict[str, Counter[int]] = field(default_factory=dict)  # the same, by when it began
    skipped: float = 0.0  # of what was due, for the clients were too far behind
    latency: Histogram = field(default_factory=Histogram)
    notes: Counter[str] = field(default_factory=Counter)  # words on failures, a few of each

    def add(
        self,
        outcome: Outcome,
        at: float,
        seconds: float | None = None,
        began: float | None = None,
    ) -> None:
        """Count one *outcome* at *at* seconds of the experiment that took *seconds*.

        It *began* at that second, or when it ended, if it took no time.
        """
        self.outcomes[outcome] += 1
        for bins, when in ((self.bins, at), (self.begun, at if began is None else began)):
            counts = bins.get(outcome)
            if counts is None:
                counts = bins[outcome] = Counter()
            counts[int(when / BIN_SECONDS)] += 1
        if seconds is not None:
            self.latency.add(seconds)

    def note(self, words: str) -> None:
        """Remember *words* about a failure; only so many different ones are kept."""
        if words in self.notes or len(self.notes) < NOTES:
            self.notes[words] += 1

    @property
    def requests(self) -> int:
        """All that was tried."""
        return self.outcomes.total()

    @property
    def due(self) -> float:
        """All that was to be tried."""
        return self.requests + self.skipped

    @property
    def failed(self) -> int:
        """All that did not end well."""
        return self.requests - self.outcomes[Outcome.OK]

    @property
    def resets(self) -> int:
        """Failures in which the server's side answered with a reset."""
        return sum(self.outcomes[outcome] for outcome in RESETS)

    def merge(self, other: Tally) -> None:
        """Add the counts of *other* to this one's."""
        self.outcomes.update(other.outcomes)
        self.answered_by.update(other.answered_by)
        self.notes.update(other.notes)
        self.latency.buckets.update(other.latency.buckets)
        self.skipped += other.skipped
        for mine, others in ((self.bins, other.bins), (self.begun, other.begun)):
            for outcome, bins in others.items():
                mine.setdefault(outcome, Counter()).update(bins)

    def failures_over_time(self) -> dict[float, int]:
        """Failures by the second of the experiment at which their bin starts."""
        total: Counter[int] = Counter()
        for outcome, bins in self.bins.items():
            if outcome != Outcome.OK:
                total.update(bins)
        return {number * BIN_SECONDS: count for number, count in sorted(total.items())}

    def to_json(self) -> dict[str, Any]:
        """A form that `json` can write."""
        return {
            "outcomes": dict(self.outcomes),
            "answered_by": dict(self.answered_by),
            "bins": {outcome: dict(bins) for outcome, bins in self.bins.items()},
            "begun": {outcome: dict(bins) for outcome, bins in self.begun.items()},
            "skipped": self.skipped,
            "latency": dict(self.latency.buckets),
            "notes": dict(self.notes),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tally:
        """The tally that `to_json` wrote; JSON turned its numbered keys into strings."""
        return cls(
            outcomes=Counter(data["outcomes"]),
            answered_by=Counter(data["answered_by"]),
            bins=_numbered(data["bins"]),
            begun=_numbered(data["begun"]),
            skipped=data["skipped"],
            latency=Histogram({int(bucket): count for bucket, count in data["latency"].items()}),
            notes=Counter(data["notes"]),
        )


def _numbered(data: dict[str, dict[str, int]]) -> dict[str, Counter[int]]:
    return {
        outcome: Counter({int(number): count for number, count in bins.items()})
        for outcome, bins in data.items()
    }
