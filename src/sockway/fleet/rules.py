"""What the registry's rules say about records, each for itself."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from sockway.balancer.spec import check_name
from sockway.errors import ConfigError, NotFoundError, StateError
from sockway.fleet.entries import MOST_BITS, Entry, Report, Rules
from sockway.fleet.store import Transaction, View

_DRAWS: Final = 64
"""Tries by lot before the free ones are counted."""
_LABEL: Final = 255


class NotKnownYetError(StateError):
    """A balancer does not know an ID yet."""


def to_be_told(view: View, name: str) -> Entry:
    """The entry of a backend that may tell its ID.

    Whoever tells an ID that a balancer does not know loses connections at that balancer.
    """
    entry = named(view, name)
    if entry.state != "assigned":
        raise StateError(
            f"server ID {entry.server_id} of {entry.name} is being retired",
            hint=f"`sockway ids assign {name}` takes it into use again",
        )
    reports = view.reports()
    if not reports:
        raise NotKnownYetError(
            f"no balancer has reported what it has in force, so none is known to have server ID "
            f"{entry.server_id} of {entry.name}",
            hint="`sockway balancer apply` with `registry` in its file, `sockway ids report "
            f"BALANCER {entry.revision}` for one that can't reach the registry, or --wait SECONDS",
        )
    behind = [report for report in reports if report.revision < entry.revision]
    if behind:
        first = behind[0]
        more = f", and {len(behind) - 1} more lack it" if len(behind) > 1 else ""
        raise NotKnownYetError(
            f"balancer {first.balancer} lacks revision {entry.revision}, which has server ID "
            f"{entry.server_id} of {entry.name}: it has {first.revision}{more}",
            hint="`sockway balancer apply` there, `sockway ids forget-balancer "
            f"{first.balancer}` if it is gone, or --wait SECONDS",
        )
    _check_carried(entry, reports)
    return entry


def _check_carried(entry: Entry, reports: Sequence[Report]) -> None:
    """A revision alone is no entry in a balancer's table: each VIP's pool must have the backend."""
    told = [(report.balancer, report.carries) for report in reports if report.carries is not None]
    vips = {vip for _, carries in told for vip, names in carries.items() if entry.name in names}
    if not vips and len(told) == len(reports):
        raise NotKnownYetError(
            f"no balancer has {entry.name} in the pool of a VIP with stamps, so none knows its "
            "server ID",
            hint="write it into a pool and `sockway balancer apply`, or --wait SECONDS",
        )
    for balancer, carries in told:
        for vip, names in carries.items():
            if vip in vips and entry.name not in names:
                raise NotKnownYetError(
                    f"balancer {balancer} serves {vip} without {entry.name}, which another one has "
                    "there",
                    hint="write it into the pool there and `sockway balancer apply`, `sockway ids "
                    f"forget-balancer {balancer}` if it is gone, or --wait SECONDS",
                )


def named(view: View, name: str) -> Entry:
    """The entry of a backend that has an ID, or is being retired."""
    entry = view.named(name)
    if entry is None:
        raise NotFoundError(
            f"{name!r} has no server ID", hint=f"`sockway ids assign {name}` gives it one"
        )
    return entry


def is_drained(entry: Entry, now: float, rules: Rules) -> bool:
    """Whether balancers need not know it any more."""
    return (
        entry.state == "retiring"
        and entry.retired_at is not None
        and now >= entry.retired_at + rules.drain
    )


def is_free_again(entry: Entry, now: float, rules: Rules, oldest: int | None) -> bool:
    """Whether its quarantine is over, and no balancer may know it any more."""
    return (
        entry.state == "quarantined"
        and entry.retired_at is not None
        and now >= entry.retired_at + rules.quarantine
        and (oldest is None or oldest >= entry.revision)
    )


def check_backend(name: str) -> None:
    """Refuse what is no name of a backend."""
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(str(error), hint="name the backend as pools do") from None


def check_label(text: str, what: str) -> None:
    """Refuse what can't be shown, or kept, as a name of `what`."""
    if not 0 < len(text) <= _LABEL or not text.isprintable():
        raise ConfigError(
            f"{text!r} is no name of {what}",
            hint=f"it has 1 to {_LABEL} characters that can be printed, such as host1/main",
        )


def check_rules(rules: Rules) -> None:
    """Refuse rules that contradict themselves."""
    if not 1 <= rules.bits <= MOST_BITS:
        raise ConfigError(f"{rules.bits} bits can't be", hint=f"server IDs have 1 to {MOST_BITS}")
    if not 0 <= rules.drain <= rules.quarantine:
        raise ConfigError(
            f"{rules.drain:.0f} s of drain do not fit into {rules.quarantine:.0f} s of quarantine",
            hint="drain is a part of the quarantine: 0 to all of it",
        )
    if not rules.quarantine < float("inf"):
        raise ConfigError("a quarantine has an end", hint="give it in seconds")


def draw(work: Transaction) -> int:
    """An ID that nobody has, by lot."""
    highest = work.facts().rules.highest
    by_hand = {number for report in work.reports() for number in report.by_hand.values()}
    for _ in range(_DRAWS):
        number = 1 + secrets.randbelow(highest)
        if number not in by_hand and work.numbered(number) is None:
            return number
    taken = {entry.server_id for entry in work.entries()} | by_hand
    free: list[int] = list({*range(1, highest + 1)} - taken)
    if not free:
        bits = work.facts().rules.bits
        raise StateError(
            f"all {highest} server IDs of {bits} bits are in use or in quarantine",
            hint="retire backends that are gone, or `sockway ids configure --bits "
            f"{min(MOST_BITS, bits + 8)}` (server_id_length must have as many octets)",
        )
    return secrets.choice(free)


def free(work: Transaction, number: int, name: str) -> int:
    """An ID that was asked for, for a backend.

    Raises:
        ConfigError: it can't be.
        StateError: it is another's, or in quarantine.

    """
    highest = work.facts().rules.highest
    if not 0 < number <= highest:
        raise ConfigError(
            f"server ID {number} can't be: it is 1 to {highest} here",
            hint="`sockway ids configure --bits` raises the highest",
        )
    holder = work.numbered(number)
    if holder is None:
        for report in work.reports():
            for other, written in report.by_hand.items():
                if written == number and other != name:
                    raise StateError(
                        f"server ID {number} is written for {other} in the file of balancer "
                        f"{report.balancer}",
                        hint="take another one, or `sockway ids adopt` there first",
                    )
        return number
    how = "is" if holder.state == "assigned" else f"is {holder.state}: it was"
    raise StateError(
        f"server ID {number} {how} that of {holder.name}",
        hint="take another one; `sockway ids list` shows all that are taken",
    )


__all__ = [
    "NotKnownYetError",
    "check_backend",
    "check_label",
    "check_rules",
    "draw",
    "free",
    "is_drained",
    "is_free_again",
    "named",
    "to_be_told",
]
