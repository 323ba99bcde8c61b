"""Where a registry's records are kept: what every store has to do.

The rules are in `Registry`, and the same for all stores. A store keeps records, and does a piece of
work on them so that all of it happens or nothing, one after the other in the whole fleet. It may do
the work again if another process was faster, so work has no other effects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from sockway.fleet.entries import Entry, Facts, Report, Revision

T = TypeVar("T")


class View(Protocol):
    """Records as they stand at one moment."""

    def facts(self) -> Facts:
        """What there is once."""

    def named(self, name: str) -> Entry | None:
        """The entry of a backend that is not quarantined; there is one at most."""

    def numbered(self, server_id: int) -> Entry | None:
        """The entry of an ID, in whatever state."""

    def entries(self) -> Sequence[Entry]:
        """All of them, by ID."""

    def retired(self) -> Sequence[Entry]:
        """Those that are retiring or quarantined, by ID."""

    def reports(self) -> Sequence[Report]:
        """Of all balancers, by name."""

    def revisions(self) -> Sequence[Revision]:
        """All changes there were, the oldest first."""

    def token(self, revision: int) -> str | None:
        """What a revision of its own is marked with; None if it never had it."""

    def knows(self, revision: int, token: str) -> bool:
        """Whether it ever had, or took in, a revision with this mark."""


class Transaction(View, Protocol):
    """Records that can be changed; work reads what it wrote."""

    def set_facts(self, facts: Facts) -> None:
        """Replace what there is once."""

    def put(self, entry: Entry) -> None:
        """Write an entry, in place of the one with its ID."""

    def drop(self, server_id: int) -> None:
        """Remove an entry."""

    def put_report(self, report: Report) -> None:
        """Write what a balancer has, in place of what it had."""

    def drop_report(self, balancer: str) -> None:
        """Forget a balancer."""

    def record(self, revision: Revision) -> None:
        """Keep a revision."""


class Store(Protocol):
    """Keeps the records."""

    def read(self, work: Callable[[View], T]) -> T:
        """Do something with the records of one moment.

        Raises:
            StateError: they can't be read; the message says why.

        """

    def change(self, work: Callable[[Transaction], T]) -> T:
        """Change records: all that `work` does, durably, or nothing if it raises.

        Raises:
            BusyError: another process keeps changing them.
            StateError: they can't be changed; the message says why.

        """

    def close(self) -> None:
        """Let go of what is open."""


__all__ = ["Store", "Transaction", "View"]
