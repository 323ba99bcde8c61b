"""``sockway stamp``: TCP connections of this host that carry their server's ID."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sockway.cli.lazy import group
from sockway.cli.output import clear_errors, out, print_json, waiting
from sockway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sockway.balancer.stamping import Stamped

app = group("TCP connections that carry their server's ID, for balancers without memory.")

_LAST_PORT = 65_535
_SHOWN = 8
"""Of a long list, on a terminal."""
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
        from sockway.balancer.stamping import Stamping, StampingSpec  # noqa: PLC0415 - costly
        from sockway.fleet.telling import stamp_up  # noqa: PLC0415

        spec = StampingSpec.read(file)
        with waiting(wait):
            server_id = stamp_up(spec, wait=wait)
        if json:
            print_json({"ok": True, "name": spec.name, "server_id": server_id})
        else:
            place = Stamping.existing(spec.name).stamped().cgroup
            out.print(f"connections of {place} are stamped", soft_wrap=True)


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
def status(
    *,
    name: Annotated[
        str | None, typer.Option("--name", help="Which; all are listed if not given.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what is stamped, and what happened: IDs told, learnt, echoed, and why not."""
    with clear_errors(as_json=json):
        from sockway.balancer.stamping import Stamping  # noqa: PLC0415

        if name is None:
            found = [Stamping.existing(each) for each in Stamping.names()]
            if json:
                print_json(
                    {"stamps": [f.stamped().as_json() | {"counters": f.counters()} for f in found]}
                )
                return
            if not found:
                out.print("nothing is stamped on this host")
            table = Table(box=None, pad_edge=False)
            for column in ("name", "server ID", "ports", "cgroup"):
                table.add_column(column)
            for each in (f.stamped() for f in found):
                table.add_row(each.name, _number(each), _ports(each), _place(each))
            if found:
                out.print(table)
            return
        stamping = Stamping.existing(name)
        stamped, counters = stamping.stamped(), stamping.counters()
        if json:
            print_json(stamped.as_json() | {"counters": counters})
            return
        for what, said in described(stamped).items():
            out.print(f"{what}: {said}", soft_wrap=True, markup=False)
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
    """Connect to a server: does it tell its ID, and does it come back? Status 1: no, or unknown.

    Say how options look by --config or --profile. Nothing is sent but an open and an end.
    """
    with clear_errors(as_json=json):
        from sockway.balancer.stampcheck import check as checked  # noqa: PLC0415

        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) <= _LAST_PORT:
            raise ConfigError(f"{target!r} is no HOST:PORT", hint="such as 192.0.2.1:443")
        kinds = _kinds(config, profile)
        found = checked(host.strip("[]"), int(port), timeout=timeout, **kinds)
        if json:
            print_json(found.as_json())
        else:
            sign = "[green]stamped[/]" if found.ok else "[red]not stamped[/]"
            if found.server_id is not None and found.echoed is None:
                sign = "[yellow]unknown[/]"
            number = "" if found.server_id is None else f", server ID {found.server_id}"
            out.print(f"{found.target}: {sign}{number}", soft_wrap=True)
            out.print(f"  {found.why}", soft_wrap=True)
    if not found.ok:
        raise typer.Exit(1)


def described(stamped: Stamped) -> dict[str, str]:
    """What is stamped, in words."""
    kinds = []
    for side in ("server", "client"):
        kind, number = getattr(stamped, f"{side}_kind"), getattr(stamped, f"{side}_experiment")
        kinds.append(f"{kind:#x}" if number is None else f"{kind} with experiment {number:#06x}")
    order = "" if stamped.byte_order == "big" else ", little-endian"
    return {
        "name": stamped.name,
        "server ID": _number(stamped),
        "ports": _ports(stamped),
        "peers": _some([str(peer) for peer in stamped.peers]),
        "kinds": f"{kinds[0]} from servers, {kinds[1]} from clients{order}",
        "cgroup": _place(stamped),
    }


def _kinds(config: Path | None, profile: str | None) -> dict[str, Any]:
    """How options look."""
    from sockway.balancer.stamping import StampingSpec  # noqa: PLC0415 - costly

    ways = "--config FILE, what the server's host is stamped by, or --profile katran"
    if config is not None and profile is not None:
        raise ConfigError("--config and --profile both say how options look", hint="leave one out")
    if config is not None:
        return StampingSpec.read(config).model_dump(include=_LOOKS)
    if profile is None:
        raise ConfigError("how do options look? There is no kind that all fleets use", hint=ways)
    if profile != "katran":
        raise ConfigError(f"there is no profile {profile!r}", hint="there is: katran")
    return {"profile": profile}


def _number(stamped: Stamped) -> str:
    return str(stamped.server_id) if stamped.server_id else "none, clients only"


def _place(stamped: Stamped) -> str:
    return str(stamped.cgroup) if stamped.cgroup else "it is gone, nothing is stamped"


def _ports(stamped: Stamped) -> str:
    told, echoed = stamped.server_ports, stamped.client_ports
    parts = [f"{_some(told)} of this host"] if told else []
    parts += [f"{_some(echoed)} of others"] if echoed else []
    return "; ".join(parts)


def _some(items: Sequence[object]) -> str:
    more = f" and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
    return ", ".join(map(str, items[:_SHOWN])) + more


__all__ = ["app", "described"]
