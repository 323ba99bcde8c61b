"""A registry as JSON: for copies, for moves, and for IDs that were kept elsewhere before."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from sockway.balancer.spec import check_name
from sockway.errors import ConfigError, StateError
from sockway.fleet.entries import MOST_BITS, Entry, Facts, Report, Revision, Rules
from sockway.fleet.registry import Registry
from sockway.fleet.rules import check_label
from sockway.fleet.store import Transaction, View
from sockway.places import written

FORMAT: Final = "sockway-ids"
VERSION: Final = 1
_AHEAD: Final = 86_400.0
"""Seconds that the clock of what is taken in may be ahead."""
_SHOWN: Final = 5
Moment = float


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _label(text: str) -> str:
    try:
        check_label(text, "anything here")
    except ConfigError as error:
        raise ValueError(error.message) from None
    return text


Label = Annotated[str, AfterValidator(_label)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
"""What SQLite can keep."""


class IdRecord(_Strict):
    """An ID; `name` and `server_id` are enough."""

    server_id: int = Field(gt=0, lt=1 << MOST_BITS)
    name: str
    state: Literal["assigned", "retiring", "quarantined"] = "assigned"
    revision: Count = 0
    assigned_at: Moment | None = None
    retired_at: Moment | None = None
    tellers: list[Label] = Field(default_factory=list)

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        return check_name(value)


class ReportRecord(_Strict):
    """What a balancer has in force."""

    balancer: Label
    revision: Count
    reported_at: Moment
    carries: dict[Label, list[Label]] | None = None
    by_hand: dict[Label, Annotated[int, Field(gt=0, lt=1 << MOST_BITS)]] = Field(
        default_factory=dict
    )


class RevisionRecord(_Strict):
    """A change that was."""

    revision: Count
    token: Label
    time: Moment
    change: str = Field(max_length=1 << 20)

    @field_validator("change")
    @classmethod
    def _written(cls, value: str) -> str:
        value.encode()  # a half of a surrogate pair can't be kept
        return value


class RulesRecord(_Strict):
    """How IDs are given."""

    bits: int = Field(ge=1, le=MOST_BITS)
    quarantine: float = Field(ge=0)
    drain: float = Field(ge=0)


class Document(_Strict):
    """All of a registry."""

    format: Literal["sockway-ids"] = "sockway-ids"
    version: Literal[1] = 1
    registry: Label | None = None
    revision: Count = 0
    clock: Moment = 0.0
    rules: RulesRecord | None = None
    ids: list[IdRecord]
    balancers: list[ReportRecord] = Field(default_factory=list)
    revisions: list[RevisionRecord] = Field(default_factory=list)


def exported(registry: Registry) -> dict[str, Any]:
    """All of a registry, as it stands now."""
    registry.current()

    def exporting(view: View) -> dict[str, Any]:
        facts = view.facts()
        return {
            "format": FORMAT,
            "version": VERSION,
            "registry": facts.registry,
            "revision": facts.revision,
            "clock": facts.clock,
            "rules": asdict(facts.rules),
            "ids": [asdict(entry) for entry in view.entries()],
            "balancers": [asdict(report) for report in view.reports()],
            "revisions": [asdict(revision) for revision in view.revisions()],
        }

    return registry.read(exporting)


def read_document(path: Path | str) -> Document:
    """What was exported, or written by hand.

    Raises:
        ConfigError: the file can't be read, or what is in it can't be.

    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"can't read {path}: {why}", hint="name a file of `ids export`") from None
    try:
        return Document.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = written(first["loc"]) or "it"
        raise ConfigError(
            f"{path}: {where} can't be used", hint=first["msg"].removeprefix("Value error, ")
        ) from None
    except (ValueError, RecursionError) as error:  # JSONDecodeError, and numbers without end
        raise ConfigError(f"{path} is not JSON: {error}", hint="see `sockway ids export`") from None


def write_export(path: Path, found: dict[str, Any], registry: Path, *, force: bool = False) -> None:
    """Write what was exported into a file, durably: all of it, or the file stays as it was.

    Args:
        path: the file.
        found: of `exported`.
        registry: the file that it was exported from, which stays.
        force: even if a file is there that is no export.

    Raises:
        ConfigError: the file can't be written, or holds something else.

    """
    kept = {registry.with_name(registry.name + end).resolve() for end in ("", "-wal", "-shm")}
    if not path.name or path.is_dir():
        raise ConfigError(f"{str(path)!r} is no file to write to", hint="name a new file")
    if path.resolve() in kept:
        raise ConfigError(f"{path} is the registry itself", hint="name a new file")
    if path.exists() and not force:
        try:
            read_document(path)
        except ConfigError:
            raise ConfigError(
                f"{path} is there, and no export", hint="name a new file, or --force"
            ) from None
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(found, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror}", hint="name a file in another directory"
        ) from None
    finally:
        fresh.unlink(missing_ok=True)


def imported(registry: Registry, document: Document, now: float) -> list[Entry]:
    """Take a document in: all of it, or nothing. The entries that are new.

    An empty registry becomes what was exported, with its revisions and its rules. Another one gets
    the IDs that it has not.

    Raises:
        ConfigError: the document contradicts itself.
        StateError: it contradicts the registry.

    """
    if document.clock > now + _AHEAD:
        raise ConfigError(
            f"its clock is {(document.clock - now) / 86_400:.0f} days ahead of this machine's",
            hint="set this machine's clock, or write another number into `clock`",
        )
    for problem in _contradictions(document):
        raise ConfigError(problem, hint="each ID is one backend's, and each backend has one")

    def importing(work: Transaction) -> list[Entry]:
        if not work.facts().revision and not work.entries():
            return _restore(work, document)
        return _merge(work, document)

    return registry.rewrite(importing)


def _contradictions(document: Document) -> Iterator[str]:
    yield from _twice(document)
    for each in document.ids:
        if (each.state == "assigned") != (each.retired_at is None):
            yield f"{each.name} is {each.state}, and retired_at says otherwise"
        if each.revision > document.revision > 0:
            yield f"{each.name} is of revision {each.revision}, which was not yet"
    if document.rules and document.rules.drain > document.rules.quarantine:
        yield "drain is longer than quarantine"
    for report in document.balancers:
        if report.revision > document.revision:
            yield f"balancer {report.balancer} has revision {report.revision}, which was not yet"


def _twice(document: Document) -> Iterator[str]:
    for number, count in Counter(each.server_id for each in document.ids).items():
        if count > 1:
            yield f"server ID {number} is there {count} times"
    live = Counter(each.name for each in document.ids if each.state != "quarantined")
    for name, count in live.items():
        if count > 1:
            yield f"{name} is there {count} times"


def _restore(work: Transaction, document: Document) -> list[Entry]:
    here = work.facts()
    rules = Rules(**document.rules.model_dump()) if document.rules else here.rules
    facts = Facts(
        document.registry or here.registry,
        document.revision,
        max(here.clock, document.clock),
        rules,
    )
    work.set_facts(facts)
    for each in document.revisions:
        work.record(Revision(**each.model_dump()))
    if document.revision and document.revisions:
        entries = [_entry(each, each.revision, facts) for each in document.ids]
        for report in document.balancers:
            carries = report.carries
            told = None if carries is None else {vip: tuple(carries[vip]) for vip in carries}
            work.put_report(Report(**{**report.model_dump(), "carries": told}))
        for entry in entries:
            work.put(entry)
        return entries
    return _put_new(work, document.ids)


def _merge(work: Transaction, document: Document) -> list[Entry]:
    conflicts, fresh = [], []
    highest = work.facts().rules.highest
    for each in document.ids:
        holder, here = work.numbered(each.server_id), work.named(each.name)
        if holder is not None and holder.name == each.name:
            if (each.state, holder.state) == ("assigned", "quarantined"):
                conflicts.append(f"{each.server_id} of {each.name} is in quarantine here")
            continue
        if holder is not None:
            conflicts.append(f"{each.server_id} is {each.name}'s there and {holder.name}'s here")
        elif here is not None and each.state != "quarantined":
            conflicts.append(f"{each.name} has {each.server_id} there and {here.server_id} here")
        elif each.server_id > highest:
            conflicts.append(
                f"{each.server_id} of {each.name} is above {highest}, the highest here"
            )
        else:
            fresh.append(each)
    if conflicts:
        more = f", and {len(conflicts) - _SHOWN} more" if len(conflicts) > _SHOWN else ""
        raise StateError(
            f"{len(conflicts)} server IDs contradict those here: "
            f"{'; '.join(conflicts[:_SHOWN])}{more}",
            hint="nothing was taken in; retire or renumber one side of each",
        )
    return _put_new(work, fresh) if fresh else []


def _put_new(work: Transaction, records: list[IdRecord]) -> list[Entry]:
    facts = work.facts()
    revision = Registry.bump(work, f"import {len(records)} IDs")
    entries = [_entry(each, revision, facts) for each in records]
    for entry in entries:
        work.put(entry)
    return entries


def _entry(record: IdRecord, revision: int, facts: Facts) -> Entry:
    """As it is kept: what was retired in the future is retired now."""
    entry = Entry(**{**record.model_dump(), "tellers": tuple(sorted(set(record.tellers)))})
    assigned = facts.clock if record.assigned_at is None else record.assigned_at
    retired = None if record.retired_at is None else min(record.retired_at, facts.clock)
    return replace(entry, revision=revision, assigned_at=assigned, retired_at=retired)


__all__ = ["FORMAT", "VERSION", "Document", "exported", "imported", "read_document", "write_export"]
