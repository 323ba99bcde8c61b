"""``sockway ids``: the registry of server IDs. What its commands do is in `sockway.fleet`."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from sockway.cli import complete
from sockway.cli.lazy import group
from sockway.cli.output import clear_errors, out, print_json, say, waiting
from sockway.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from sockway.fleet import Entry, Facts, Registry, Report

app = group("Server IDs of a fleet: who has which, and who knows it.")

File = Annotated[
    Path | None,
    typer.Option(
        "--registry", help="The registry's file; else $SOCKWAY_IDS, else /var/lib/sockway/ids.db."
    ),
]
Backend = Annotated[
    str,
    typer.Argument(help="The backend.", show_default=False, autocompletion=complete.registered),
]
Names = Annotated[list[str], typer.Argument(help="Backends.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_AHEAD = 3600.0
_HOUR = 3600.0


@app.command()
def assign(
    names: Names,
    *,
    server_id: Annotated[
        int | None, typer.Option("--id", help="This ID and no other; for one backend.")
    ] = None,
    registry: File = None,
    json: Json = False,
) -> None:
    """Give backends IDs; those that have one keep it. Makes the registry if there is none.

    Each backend by itself: after an error those before it have theirs.
    """
    with clear_errors(as_json=json):
        from sockway.fleet.rules import check_backend  # noqa: PLC0415 - costly

        if server_id is not None and len(names) > 1:
            raise ConfigError(f"--id {server_id} is one ID", hint="name one backend with it")
        with _registry(registry, create=True) as opened:
            for name in names:
                check_backend(name)
            entries = [opened.assign(name, server_id) for name in names]
        if json:
            print_json({"ok": True, "ids": [asdict(entry) for entry in entries]})
            return
        for entry in entries:
            out.print(f"{entry.name} has server ID {entry.server_id}, revision {entry.revision}")


@app.command("list")
def list_ids(*, registry: File = None, json: Json = False) -> None:
    """Show all IDs that are not free, who tells them, and which balancers lack them."""
    with clear_errors(as_json=json):
        with _registry(registry) as opened:
            entries, facts, reports = opened.entries(), opened.facts(), opened.reports()
        if json:
            rows = [asdict(entry) | {"lacking": _lacking(entry, reports)} for entry in entries]
            print_json({**asdict(facts), "highest": facts.rules.highest, "ids": rows})
            return
        table = Table("ID", "backend", "state", "revision", "told by", "lacking", box=None)
        for entry in entries:
            table.add_row(
                str(entry.server_id), entry.name, _state(entry, facts), str(entry.revision),
                Text(", ".join(entry.tellers)), Text(", ".join(_lacking(entry, reports))),
            )  # fmt: skip
        out.print(f"revision {facts.revision}, {len(entries)} of {facts.rules.highest:,} IDs taken")
        if entries:
            out.print(table)
        if facts.clock > time.time() + _AHEAD:
            say(
                f"its clock is {_time(facts.clock - time.time())} ahead of this machine's: nothing "
                "is freed until that has caught up (`sockway ids configure --reset-clock`)"
            )


@app.command()
def retire(
    name: Backend,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Even if it still tells its ID; it is gone.")
    ] = False,
    registry: File = None,
    json: Json = False,
) -> None:
    """Take a backend's ID back: balancers know it for the drain, nobody gets it for the quarantine.

    `assign` takes that back as long as the drain lasts.
    """
    with clear_errors(as_json=json):
        with _registry(registry) as opened:
            entry, facts = opened.retire(name, force=force), opened.facts()
        if json:
            print_json({"ok": True, **asdict(entry)})
        else:
            out.print(f"server ID {entry.server_id} of {name}: {_state(entry, facts)}")


@app.command()
def export(
    file: Annotated[
        Path | None, typer.Argument(help="A new file; standard output if not given.")
    ] = None,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Even over a file that is no export.")
    ] = False,
    registry: File = None,
    json: Json = False,
) -> None:
    """Write all of the registry as JSON: a copy, or what `import` takes elsewhere."""
    with clear_errors(as_json=json):
        from sockway.fleet import default_path  # noqa: PLC0415 - costly
        from sockway.fleet.exchange import exported, write_export  # noqa: PLC0415

        with _registry(registry) as opened:
            found = exported(opened)
        if file is None:
            print_json(found)
            return
        write_export(file, found, registry or default_path(), force=force)
        _done(f"{len(found['ids'])} IDs are in {file}", as_json=json, file=str(file))


@app.command("import")
def import_ids(
    file: Annotated[Path, typer.Argument(help="What `export` wrote.", show_default=False)],
    *,
    registry: File = None,
    json: Json = False,
) -> None:
    """Take IDs in, all or none; a registry that is empty becomes what was exported.

    By hand, `{"ids": [{"name": "web1", "server_id": 17}]}` is enough.
    """
    with clear_errors(as_json=json):
        from sockway.fleet.exchange import imported, read_document  # noqa: PLC0415

        document = read_document(file)
        with _registry(registry, create=True) as opened:
            fresh = imported(opened, document, time.time())
        if json:
            print_json({"ok": True, "ids": [asdict(entry) for entry in fresh]})
        else:
            out.print(f"{len(fresh)} IDs are new, {len(document.ids) - len(fresh)} were there")


@app.command()
def adopt(
    *,
    name: Annotated[str, typer.Option("--name", help="The balancer.")] = "main",
    registry: File = None,
    json: Json = False,
) -> None:
    """Take in the IDs that this host's balancer has in force.

    That is for IDs that were written into its configuration, and after the registry was restored
    from an older copy: what was given since then is what balancers have.
    """
    with clear_errors(as_json=json):
        from sockway.fleet import applying  # noqa: PLC0415

        spec = applying.in_force(name)
        if spec is None:
            raise NotFoundError(
                f"there is no balancer {name!r} in this network namespace",
                hint="--name names another; `sockway ids import` takes IDs from a file",
            )
        with _registry(registry or spec.registry, create=True) as opened:
            fresh = applying.adopt(spec, opened)
        if json:
            print_json({"ok": True, "ids": [asdict(entry) for entry in fresh]})
        else:
            told = ", ".join(f"{entry.name} {entry.server_id}" for entry in fresh)
            out.print(f"taken in: {told or 'nothing is new'}", soft_wrap=True)


@app.command()
def balancers(*, registry: File = None, json: Json = False) -> None:
    """Show what balancers have reported to have in force."""
    with clear_errors(as_json=json):
        with _registry(registry) as opened:
            revision, reports = opened.current(), opened.reports()
        if json:
            rows = [asdict(each) for each in reports]
            print_json({"revision": revision, "balancers": rows})
            return
        table = Table("balancer", "revision", "reported", "IDs", box=None)
        for each in reports:
            ago = _time(max(0.0, time.time() - each.reported_at))
            names = {name for names in (each.carries or {}).values() for name in names}
            count = "?" if each.carries is None else str(len(names))
            table.add_row(Text(each.balancer), str(each.revision), f"{ago} ago", count)
        out.print(f"revision {revision}")
        out.print(table if reports else "no balancer has reported yet")


@app.command()
def report(
    balancer: Annotated[str, typer.Argument(help="Its name in the fleet.", show_default=False)],
    revision: Annotated[int, typer.Argument(help="What it has in force.", show_default=False)],
    *,
    registry: File = None,
    json: Json = False,
) -> None:
    """Say what a balancer has in force that can't reach the registry itself."""
    with clear_errors(as_json=json):
        with _registry(registry) as opened:
            opened.report(balancer, revision)
        _done(f"{balancer} has revision {revision}", as_json=json,
              balancer=balancer, revision=revision)  # fmt: skip


@app.command()
def forget_balancer(
    balancer: Annotated[str, typer.Argument(help="Its name in the fleet.", show_default=False)],
    *,
    registry: File = None,
    json: Json = False,
) -> None:
    """Wait no more for a balancer that is gone; it is known again when it reports."""
    with clear_errors(as_json=json):
        with _registry(registry) as opened:
            opened.forget_balancer(balancer)
        _done(f"{balancer} is not waited for any more", as_json=json, balancer=balancer)


@app.command()
def env(
    name: Backend,
    *,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for balancers.")] = 0.0,
    stop: Annotated[
        bool, typer.Option("--stop", help="Note that servers mint by it no more.")
    ] = False,
    label: Annotated[
        str, typer.Option("--as", help="What mints by it, if there are several on this host.")
    ] = "main",
    registry: File = None,
    json: Json = False,
) -> None:
    """Print the environment of servers that mint QUIC connection IDs, if all balancers know the ID.

    `SOCKWAY_SERVER_ID=17`, for an EnvironmentFile of systemd, or `export $(sockway ids env web1)`.
    """
    with clear_errors(as_json=json):
        from sockway.fleet.telling import teller  # noqa: PLC0415

        who = teller("quic", label)
        with _registry(registry) as opened:
            if stop:
                was = opened.fall_silent(name, who)
                _done(f"{name}: {'noted' if was else 'it was not noted before'}", as_json=json)
                return
            with waiting(wait):
                entry = opened.tell(name, who, wait)
        if json:
            print_json({"ok": True, "environment": {"SOCKWAY_SERVER_ID": str(entry.server_id)}})
        else:
            out.print(f"SOCKWAY_SERVER_ID={entry.server_id}")


@app.command()
def configure(
    *,
    bits: Annotated[
        int | None,
        typer.Option(help="New IDs are below 2^BITS: 8 for each octet of server_id_length."),
    ] = None,
    quarantine: Annotated[
        str | None, typer.Option(help="How long nobody gets a retired ID: 7d, 12h, 90m, 30s.")
    ] = None,
    drain: Annotated[
        str | None, typer.Option(help="How long of that balancers still know it: 1h.")
    ] = None,
    reset_clock: Annotated[
        bool,
        typer.Option(
            "--reset-clock", help="Its clock was ahead: now it is not; quarantines begin anew."
        ),
    ] = False,
    registry: File = None,
    json: Json = False,
) -> None:
    """Change the registry's rules, or show them. Makes it if there is none."""
    with clear_errors(as_json=json):
        changes = {
            "bits": bits,
            "quarantine": None if quarantine is None else _seconds(quarantine),
            "drain": None if drain is None else _seconds(drain),
            "reset_clock": reset_clock,
        }
        wanted: dict[str, Any] = {
            field: value
            for field, value in changes.items()
            if value is not None and value is not False
        }
        with _registry(registry, create=bool(wanted)) as opened:
            facts = opened.configure(**wanted) if wanted else opened.facts()
        if json:
            print_json({"ok": True, **asdict(facts)})
            return
        rules = facts.rules
        out.print(
            f"IDs of {rules.bits} bits, quarantine {_time(rules.quarantine)}, "
            f"drain {_time(rules.drain)}"
        )


def _registry(path: Path | None, *, create: bool = False) -> AbstractContextManager[Registry]:
    from sockway.fleet import Registry  # noqa: PLC0415 - costly

    return Registry.open(path, create=create, whole=True)


def _lacking(entry: Entry, reports: list[Report]) -> list[str]:
    return [each.balancer for each in reports if each.revision < entry.revision]


def _state(entry: Entry, facts: Facts) -> str:
    if entry.retired_at is None:
        return entry.state
    now = max(facts.clock, time.time())
    length = facts.rules.drain if entry.state == "retiring" else facts.rules.quarantine
    left = entry.retired_at + length - now
    return f"{entry.state}, {_time(left)} left" if left > 0 else f"{entry.state}, balancers lack it"


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no length of time", hint="write 7d, 12h, 90m or 30s")
    return float(match[1]) * _UNITS[match[2]]


def _time(seconds: float) -> str:
    for unit in ("d", "h", "m"):
        if seconds >= _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:.3g} {unit}"
    return f"{seconds:.3g} s"


def _done(text: str, *, as_json: bool, **facts: Any) -> None:
    if as_json:
        print_json({"ok": True, **facts})
    else:
        out.print(text, markup=False, soft_wrap=True)
