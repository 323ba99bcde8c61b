"""What clients were told to send, and what they got to: who was the limit, by figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sockway.lab.findings import Table
from sockway.lab.tally import Tally

ENOUGH: Final = 0.95
"""Share of what is due; with less, clients, servers or failures were the limit."""


@dataclass(frozen=True)
class Offer:
    """One load of one system."""

    load: str
    system: str
    """Both as people call them."""
    rate: float
    """Requests or datagrams a second that clients were told to send."""
    tally: Tally

    @property
    def share(self) -> float:
        """Of what was due, tried."""
        return self.tally.requests / self.tally.due if self.tally.due else 0.0

    @property
    def achieved(self) -> float:
        """Requests or datagrams a second that they sent."""
        return self.rate * self.share


def words(offers: Sequence[Offer]) -> str:
    """Whether anything was at its limit."""
    least = min(offers, key=lambda offer: offer.share)
    behind = [
        f"{offer.load} with {offer.system} ({offer.share:.0%})"
        for offer in offers
        if offer.share < ENOUGH
    ]
    if not behind:
        return (
            f"Clients send at fixed rates, and sent at least {least.share:.1%} of what was due "
            f"({least.load} with {least.system}): neither they nor servers were at their limit."
        )
    return (
        "Clients send at fixed rates. They were held up, by servers, by failures or by themselves, "
        f"and sent less than {ENOUGH:.0%} of what was due in: {', '.join(behind)}."
    )


def table(title: str, offers: Sequence[Offer]) -> Table:
    """A row for each load and system."""
    return Table(
        title=title,
        columns=["load", "released by", "offered, /s", "sent, /s", "of what was due"],
        rows=[
            [
                offer.load, offer.system, f"{offer.rate:,.0f}", f"{offer.achieved:,.1f}",
                f"{offer.share:.1%}",
            ]
            for offer in offers
        ],
    )  # fmt: skip


__all__ = ["ENOUGH", "Offer", "table", "words"]
