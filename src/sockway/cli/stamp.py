"""``sockway stamp``: TCP connections of this host that carry their server's ID."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sockway.cli.output import clear_errors, out, print_json, waiting
from sockway.errors import ConfigError

app = typer.Typer(
    help="TCP connections that carry their server's ID, for balancers without memory.",
    no_args_is_help=True,
)

_LAST_PORT = 65_535
_LOOKS = {
    "server_kind", "client_kind", "server_experiment", "client_experiment", "byte_order", "profile",
}  # fmt: skip

Name = Annotated[str, typer.Option("--name", help="Which, if there are several.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def up(
    file: Annotated[Path, typer.Argument(help="What is stamped, TOML.", show_default=False)],
    *,
    wait: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds to wait for balancers that don't know the registry's ID yet."
        ),
    ] = 0.0,
    json: Json = False,
) -> None:
    """Stamp connections of a cgroup's processes, or change what is stamped.

    An ID of the registry is told when all balancers know it, and not before.
    """
    with clear_errors(as_json=json):
        from sockway.balancer.stamping import StampingSpec  # noqa: PLC0415 - costly
        from sockway.fleet.telling import stamp_up  # noqa: PLC0415

        spec = StampingSpec.read(file)
        with waiting(wait):
            server_id = stamp_up(spec, wait=wait)
        if json:
            print_json({"ok": True, "name": spec.name, "server_id": server_id})
        else:
            out.print(f"connections of {spec.cgroup} are stamped", soft_wrap=True)


@app.command()
def down(*, name: Name = "main", json: Json = False) -> None:
    """Stop stamping; connections go on."""
    with clear_errors(as_json=json):
        from sockway.fleet.telling import stamp_down  # noqa: PLC0415

        stamp_down(name)
        if json:
            print_json({"ok": True, "name": name})
        else:
            out.print(f"{name}: nothing is stamped any more")


@app.command()
def status(*, name: Name = "main", json: Json = False) -> None:
    """Show what happened: IDs told, learnt, echoed, and why not."""
    with clear_errors(as_json=json):
        from sockway.balancer.stamping import Stamping  # noqa: PLC0415

        counters = Stamping.existing(name).counters()
        if json:
            print_json({"name": name, "counters": counters})
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        for what, number in counters.items():
            table.add_row(what, f"{number:,}")
        out.print(table)


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="HOST:PORT of a server.", show_default=False)],
    *,
    config: Annotated[
        Path | None, typer.Option(help="Options look as in this file; only that is taken from it.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="katran: as in fleets behind it.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an ID.")] = 3.0,
    json: Json = False,
) -> None:
    """Connect to a server: does it tell its ID, and does it come back? Status 1: no."""
    with clear_errors(as_json=json):
        from sockway.balancer.stampcheck import check as checked  # noqa: PLC0415
        from sockway.balancer.stamping import StampingSpec  # noqa: PLC0415

        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= _LAST_PORT:
            raise ConfigError(f"{target!r} is no HOST:PORT", hint="such as 192.0.2.1:443")
        kinds = {}
        if config is not None:
            kinds = StampingSpec.read(config).model_dump(include=_LOOKS)
        elif profile is not None:
            if profile != "katran":
                raise ConfigError(f"there is no profile {profile!r}", hint="there is: katran")
            kinds = {"profile": profile}
        found = checked(host.strip("[]"), int(port), timeout=timeout, **kinds)
        if json:
            print_json(found.as_json())
        else:
            sign = "[green]stamped[/]" if found.ok else "[red]not stamped[/]"
            number = "" if found.server_id is None else f", server ID {found.server_id}"
            out.print(f"{found.target}: {sign}{number}", soft_wrap=True)
            out.print(f"  {found.why}", soft_wrap=True)
    if not found.ok:
        raise typer.Exit(1)
