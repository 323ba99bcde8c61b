"""The registry of server IDs: who has which, who may tell it, and when it is free again.

An ID goes through three states, each by a revision that balancers learn and report:

    assigned ──retire──► retiring ──drain is over──► quarantined ──quarantine is over──► free

Make before break, both ways: a backend may tell its ID (stamp with it) when every balancer has the
revision that has the ID; balancers forget an ID when nobody tells it any more and its connections
have had their time; nobody else gets it before all balancers forgot it and its quarantine is over.

IDs are drawn by lot. A registry that was restored from an old copy does not know what was given
since; the next ones in a row would be just those, a random one hardly ever is. What balancers have
in force tells that a registry is older than they are, and `adopt` takes it in.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Self, TypeVar

from sockway.errors import ConfigError, NotFoundError, StateError
from sockway.fleet.entries import Entry, Facts, Report, Revision, Rules
from sockway.fleet.rules import (
    NotKnownYetError,
    check_backend,
    check_label,
    check_rules,
    draw,
    free,
    is_drained,
    is_free_again,
    named,
    to_be_told,
)
from sockway.fleet.sqlite import SqliteStore
from sockway.fleet.store import Store, Transaction, View

VARIABLE: Final = "SOCKWAY_IDS"
DEFAULT: Final = Path("/var/lib/sockway/ids.db")
_POLL: Final = 0.2

T = TypeVar("T")


def default_path() -> Path:
    """Where the registry is unless another is named: SOCKWAY_IDS, or in /var/lib/sockway."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)


class Registry:
    """The rules, over a store of records."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        """Take a store, and where the time comes from."""
        self._store = store
        self._time = clock

    @classmethod
    @contextmanager
    def open(
        cls, path: Path | str | None = None, *, create: bool = False, whole: bool = False
    ) -> Iterator[Self]:
        """The registry in a file, while the block lasts; see `SqliteStore.open` for what it raises.

        Args:
            path: the file; `default_path()` if not given.
            create: make it if it is not there.
            whole: read all of it to see whether it is damaged.

        """
        store = SqliteStore.open(path or default_path(), create=create, whole=whole)
        try:
            yield cls(store)
        finally:
            store.close()

    # What there is

    def read(self, work: Callable[[View], T]) -> T:
        """Look at records of one moment."""
        return self._store.read(work)

    def entries(self) -> list[Entry]:
        """All IDs that are not free, as they are now."""
        self.current()
        return list(self._store.read(lambda view: view.entries()))

    def facts(self) -> Facts:
        """Revision, clock and rules."""
        return self._store.read(lambda view: view.facts())

    def reports(self) -> list[Report]:
        """What balancers have in force."""
        return list(self._store.read(lambda view: view.reports()))

    def current(self) -> int:
        """The revision, after what time alone has changed."""

        def look(view: View) -> tuple[int, bool]:
            return view.facts().revision, self._is_due(view)

        revision, due = self._store.read(look)
        return self._change(lambda work: work.facts().revision) if due else revision

    # IDs

    def assign(self, name: str, server_id: int | None = None) -> Entry:
        """Give a backend an ID; the one that it has, if it has one.

        One that is being retired is taken back into use.

        Args:
            name: of the backend.
            server_id: this ID and no other.

        Raises:
            ConfigError: no such name or ID can be.
            StateError: the ID is another's, the backend has another, or none is free.

        """
        check_backend(name)

        def assigning(work: Transaction) -> Entry:
            here = work.named(name)
            if here is not None:
                if server_id not in (None, here.server_id):
                    raise StateError(
                        f"{name} has server ID {here.server_id} already",
                        hint=f"`sockway ids retire {name}` first, if it shall have another",
                    )
                if here.state == "assigned":
                    return here
                entry = replace(here, state="assigned", retired_at=None)
                revision = self.bump(work, f"assign {name} again")
            else:
                number = draw(work) if server_id is None else free(work, server_id, name)
                entry = Entry(number, name, "assigned", 0, work.facts().clock)
                revision = self.bump(work, f"assign {name}")
            entry = replace(entry, revision=revision)
            work.put(entry)
            return entry

        known = self._store.read(lambda view: view.named(name))
        if known is not None and known.state == "assigned" and server_id in (None, known.server_id):
            return known
        return self._change(assigning)

    def retire(self, name: str, *, force: bool = False) -> Entry:
        """Begin to take a backend's ID back; once more changes nothing.

        Args:
            name: of the backend.
            force: even if it still tells its ID.

        Raises:
            NotFoundError: no such backend has one.
            StateError: it still tells its ID.

        """

        def retiring(work: Transaction) -> Entry:
            entry = named(work, name)
            if entry.state == "retiring":
                return entry
            if entry.tellers and not force:
                raise StateError(
                    f"{name} still stamps with server ID {entry.server_id}: "
                    f"{', '.join(entry.tellers)}",
                    hint="end that first (`sockway stamp down` there, `sockway ids env "
                    f"{name} --stop` for QUIC servers), or --force if it is gone",
                )
            now, revision = work.facts().clock, self.bump(work, f"retire {name}")
            entry = replace(entry, state="retiring", retired_at=now, revision=revision, tellers=())
            work.put(entry)
            return entry

        return self._change(retiring)

    # Make before break

    def tell(self, name: str, teller: str, wait: float = 0.0) -> Entry:
        """Allow `teller` to tell clients a backend's ID, and note that it does.

        Args:
            name: of the backend.
            teller: what tells it, and where: `tcp main on host1`.
            wait: seconds to wait for balancers that lack it.

        Raises:
            NotFoundError: no such backend has an ID.
            StateError: it is being retired, or a balancer does not know it yet.

            ConfigError: the teller's name can't be.

        """
        check_label(teller, "what tells an ID")

        def telling(work: Transaction) -> Entry:
            entry = to_be_told(work, name)
            entry = replace(entry, tellers=tuple(sorted({*entry.tellers, teller})))
            work.put(entry)
            return entry

        until = time.monotonic() + wait
        while True:
            try:
                self.current()
                self._store.read(lambda view: to_be_told(view, name))
                return self._change(telling)
            except NotKnownYetError:
                if time.monotonic() >= until:
                    raise
            time.sleep(_POLL)

    def fall_silent(self, name: str, teller: str) -> bool:
        """Note that `teller` tells a backend's ID no more; whether it did before."""

        def silencing(work: Transaction) -> bool:
            entry = work.named(name)
            if entry is None or teller not in entry.tellers:
                return False
            work.put(replace(entry, tellers=tuple(t for t in entry.tellers if t != teller)))
            return True

        return self._change(silencing)

    def lacking(self, entry: Entry) -> list[Report]:
        """Balancers that have an older revision than the one that an entry is of."""
        return [report for report in self.reports() if report.revision < entry.revision]

    def announce(self, balancer: str) -> bool:
        """Wait for a balancer that will come into force; False if it is known already.

        It may have read its IDs, and not be in force yet: what it lacks then must not be told.

        Raises:
            ConfigError: the name can't be.

        """
        check_label(balancer, "a balancer")

        def announcing(work: Transaction) -> bool:
            if any(report.balancer == balancer for report in work.reports()):
                return False
            work.put_report(Report(balancer, 0, work.facts().clock, {}))
            return True

        return self._change(announcing)

    def report(
        self,
        balancer: str,
        revision: int,
        carries: Mapping[str, tuple[str, ...]] | None = None,
        *,
        by_hand: Mapping[str, int] | None = None,
        of: tuple[str, str] | None = None,
    ) -> Report:
        """Note what a balancer has in force.

        Args:
            balancer: its name in the fleet.
            revision: that its IDs are of.
            carries: by VIP with stamps, names of backends whose IDs lead there; not said if not
                given.
            by_hand: backends whose IDs were written in its file.
            of: the registry's own name, and the mark of the revision; not checked if not given.

        Raises:
            ConfigError: there was no such revision yet, or the name can't be.
            StateError: the IDs are of another registry.

        """
        check_label(balancer, "a balancer")

        def reporting(work: Transaction) -> Report:
            facts = work.facts()
            if of is not None and (of[0] != facts.registry or not work.knows(revision, of[1])):
                raise StateError(
                    f"revision {revision} that balancer {balancer} has in force is of another "
                    "registry, or was lost from this one",
                    hint="`sockway ids adopt` there takes in what is in force",
                )
            if not 0 <= revision <= facts.revision:
                raise ConfigError(
                    f"there is no revision {revision} yet: the registry is at {facts.revision}",
                    hint="`sockway ids list` shows revisions",
                )
            report = Report(balancer, revision, facts.clock, carries, dict(by_hand or {}))
            work.put_report(report)
            return report

        return self._change(reporting)

    def forget_balancer(self, balancer: str) -> None:
        """Wait for a balancer no more: it is gone.

        Raises:
            NotFoundError: none of this name has reported.

        """

        def forgetting(work: Transaction) -> None:
            known = [report.balancer for report in work.reports()]
            if balancer not in known:
                raise NotFoundError(
                    f"no balancer {balancer!r} has reported",
                    hint=f"these have: {', '.join(known) or 'none'}",
                )
            work.drop_report(balancer)

        self._change(forgetting)

    # The registry itself

    def configure(
        self,
        *,
        bits: int | None = None,
        quarantine: float | None = None,
        drain: float | None = None,
        reset_clock: bool = False,
    ) -> Facts:
        """Change rules; what was given stays.

        Args:
            bits: new IDs are below two to the power of this.
            quarantine: seconds.
            drain: seconds, of the quarantine.
            reset_clock: the registry's clock was ahead: it is now; quarantines begin anew.

        Raises:
            ConfigError: these can't be.

        """

        def configuring(work: Transaction) -> Facts:
            facts = work.facts()
            here = facts.rules
            rules = Rules(
                here.bits if bits is None else bits,
                here.quarantine if quarantine is None else quarantine,
                here.drain if drain is None else drain,
            )
            check_rules(rules)
            facts = replace(facts, rules=rules)
            if reset_clock:
                facts = replace(facts, clock=self._time())
                for entry in work.retired():
                    work.put(replace(entry, retired_at=facts.clock))
            work.set_facts(facts)
            return facts

        return self._change(configuring)

    def adopt(self, ids: Mapping[str, int], known: tuple[int, str] | None = None) -> list[Entry]:
        """Take in IDs that are in force somewhere, all of them or none; those that are new here.

        Args:
            ids: names of backends and their IDs.
            known: revision and mark that they are of, which count as known from now on.

        Raises:
            StateError: an ID is another's here, or a backend has another one.

        """

        def adopting(work: Transaction) -> list[Entry]:
            fresh = []
            for name, number in sorted(ids.items()):
                check_backend(name)
                here = work.named(name)
                holder = work.numbered(number)
                if holder is not None and holder.name == name and holder.state != "quarantined":
                    continue
                if here is not None:
                    raise StateError(
                        f"{name} has server ID {number} in force, and {here.server_id} here",
                        hint=f"nothing was taken in; `sockway ids retire {name} --force` if nobody "
                        "stamps with the one from here",
                    )
                own = holder is not None and holder.name == name
                fresh.append((name, number if own else free(work, number, name)))
            facts = work.facts()
            if known is not None and not work.knows(*known):
                work.record(Revision(*known, facts.clock, "adopted"))
                work.set_facts(replace(facts, revision=max(facts.revision, known[0])))
                self.bump(work, "adopted")
            if not fresh:
                return []
            revision = self.bump(work, f"adopt {', '.join(name for name, _ in fresh)}")
            entries = [
                Entry(number, name, "assigned", revision, facts.clock) for name, number in fresh
            ]
            for entry in entries:
                work.put(entry)
            return entries

        return self._change(adopting)

    def rewrite(self, work: Callable[[Transaction], T]) -> T:
        """Do something else with all records, in one change."""
        return self._change(work)

    @staticmethod
    def bump(work: Transaction, change: str) -> int:
        """Begin a revision within a change; its number."""
        facts = work.facts()
        facts = replace(facts, revision=facts.revision + 1)
        work.set_facts(facts)
        work.record(Revision(facts.revision, secrets.token_hex(8), facts.clock, change))
        return facts.revision

    # How it is done

    def _change(self, work: Callable[[Transaction], T]) -> T:
        def changing(transaction: Transaction) -> T:
            self._advance(transaction)
            return work(transaction)

        return self._store.change(changing)

    def _now(self, view: View) -> float:
        """Its own time, which never goes back: not even if the machine's does."""
        return max(view.facts().clock, self._time())

    def _is_due(self, view: View) -> bool:
        now, rules = self._now(view), view.facts().rules
        oldest = min((r.revision for r in view.reports()), default=None)
        return any(
            is_drained(entry, now, rules) or is_free_again(entry, now, rules, oldest)
            for entry in view.retired()
        )

    def _advance(self, work: Transaction) -> None:
        """Set the clock, and do what time alone does."""
        facts = replace(work.facts(), clock=self._now(work))
        work.set_facts(facts)
        entries = work.retired()
        drained = [e for e in entries if is_drained(e, facts.clock, facts.rules)]
        if drained:
            revision = self.bump(work, f"drained {', '.join(entry.name for entry in drained)}")
            for entry in drained:
                work.put(replace(entry, state="quarantined", revision=revision, tellers=()))
        oldest = min((report.revision for report in work.reports()), default=None)
        for entry in entries:
            if is_free_again(entry, facts.clock, facts.rules, oldest):
                work.drop(entry.server_id)


__all__ = ["DEFAULT", "VARIABLE", "Registry", "default_path"]
