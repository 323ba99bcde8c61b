"""``sockway backend``: this host behind balancers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sockway.cli.output import clear_errors, out, print_json

app = typer.Typer(
    help="This host as a backend: VIPs on its loopback, tunnels of balancers opened.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Option("--name", help="The backend's set-up.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def up(
    file: Annotated[Path, typer.Argument(help="Its configuration, TOML.", show_default=False)],
    *,
    json: Json = False,
) -> None:
    """Set this host up, or change what is set up: all of it, or nothing."""
    with clear_errors(as_json=json):
        from sockway.balancer.host import Host, HostSpec  # noqa: PLC0415 - costly

        spec = HostSpec.read(file)
        host = Host.up(spec)
        if json:
            print_json({"ok": True, "name": spec.name, "interfaces": host.interfaces})
        else:
            vips = ", ".join(map(str, spec.vips))
            out.print(f"tunnels to {vips} are opened on {', '.join(host.interfaces)}")


@app.command()
def down(*, name: Name = "main", json: Json = False) -> None:
    """Undo all of it: what was there before is there again."""
    with clear_errors(as_json=json):
        from sockway.balancer.host import Host  # noqa: PLC0415

        Host.existing(name).down()
        if json:
            print_json({"ok": True, "name": name})
        else:
            out.print(f"backend {name} is undone")


@app.command()
def status(*, name: Name = "main", json: Json = False) -> None:
    """Show what is set up, and what became of tunnels' packets."""
    with clear_errors(as_json=json):
        from sockway.balancer.host import Host  # noqa: PLC0415

        host = Host.existing(name)
        journal, counters = host.journal(), host.counters()
        if json:
            print_json(
                {
                    "name": name,
                    "interfaces": host.interfaces,
                    "vips": journal.vips,
                    "sysctls_before": journal.sysctls,
                    "counters": counters,
                }
            )
            return
        out.print(f"backend {name} on {', '.join(host.interfaces) or 'no interface'}")
        out.print(f"put on the loopback: {', '.join(journal.vips) or 'nothing'}")
        table = Table(box=None, show_header=False, pad_edge=False)
        for outcome, number in counters.items():
            table.add_row(outcome, f"{number:,}")
        out.print(table)
