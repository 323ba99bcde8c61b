"""``sockway lab``: its network; the experiments are in `sockway.lab.cli`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from sockway.cli.output import clear_errors, out, print_json
from sockway.errors import ConfigError
from sockway.lab.cli import app

_WIDTH = 140  # of what goes to a file

LabName = Annotated[str, typer.Argument(help="The lab.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    experiments: Annotated[
        list[str] | None, typer.Argument(help="Which: resets. All unless given.")
    ] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller and shorter.")] = False,
    output: Annotated[Path, typer.Option(help="Directory for figures and plots.")] = Path(
        "out/lab"
    ),
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Run experiments in namespaces of their own: each system beside what it replaces."""
    with clear_errors(as_json=json):
        from sockway.lab.experiments import EXPERIMENTS, resets  # noqa: PLC0415

        for unknown in set(experiments or ()) - set(EXPERIMENTS):
            raise ConfigError(
                f"there is no experiment {unknown!r}", hint=f"there is: {', '.join(EXPERIMENTS)}"
            )
        written = resets(output, quick=quick, console=_console(to_error=json))
        if json:
            sys.stdout.write((output / "resets.json").read_text(encoding="utf-8"))
        else:
            out.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True)


@app.command()
def up(
    topology: Annotated[
        Path | None, typer.Argument(help="The network, TOML; a small one unless given.")
    ] = None,
    *,
    encapsulation: Annotated[str, typer.Option(help="Of the tunnels: ip or gue.")] = "ip",
    tunnel: Annotated[int, typer.Option(help="IP version of the tunnels: 4 or 6.")] = 4,
    bare: Annotated[bool, typer.Option("--bare", help="The network only; start nothing.")] = False,
    json: Json = False,
) -> None:
    """Build a network in namespaces, with backends and balancers that run.

    Clients reach its VIPs: sockway lab exec client1 -- curl http://192.0.2.1/
    """
    with clear_errors(as_json=json):
        from sockway.lab import network_commands  # noqa: PLC0415

        if encapsulation not in {"ip", "gue"}:
            raise ConfigError(f"--encapsulation {encapsulation!r}", hint="ip or gue")
        if tunnel not in {4, 6}:
            raise ConfigError(f"--tunnel {tunnel}", hint="4 or 6")
        chosen: Literal["ip", "gue"] = "gue" if encapsulation == "gue" else "ip"
        _show_lab(network_commands.up(topology, chosen, tunnel, bare=bare), as_json=json)


@app.command()
def status(name: LabName = "lab", *, json: Json = False) -> None:
    """Show a lab that is up: its picture, hosts, processes."""
    with clear_errors(as_json=json):
        from sockway.lab import network_commands  # noqa: PLC0415

        _show_lab(network_commands.status(name), as_json=json)


@app.command("exec")
def execute(
    node: Annotated[str, typer.Argument(help="A host: client1, balancer1, ...")],
    command: Annotated[list[str], typer.Argument(help="What to run there, after `--`.")],
    *,
    name: Annotated[str, typer.Option("--name", help="The lab.")] = "lab",
) -> None:
    """Run a command on a host of a lab; its exit status is that of the command."""
    with clear_errors():
        from sockway.lab import network_commands  # noqa: PLC0415

        raise typer.Exit(network_commands.execute(name, node, command))


@app.command()
def down(name: LabName = "lab", *, json: Json = False) -> None:
    """Take a lab down: its processes end, its namespaces go."""
    with clear_errors(as_json=json):
        from sockway.lab import network_commands  # noqa: PLC0415

        network_commands.down(name)
        if json:
            print_json({"ok": True, "name": name})
        else:
            out.print(f"lab {name} is down")


def _console(*, to_error: bool) -> Console:
    console = Console(stderr=to_error)
    return console if console.is_terminal else Console(stderr=to_error, width=_WIDTH)


def _show_lab(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    out.print(found["picture"], markup=False)
    out.print("")
    for name, node in found["nodes"].items():
        addresses = ", ".join(node["addresses"])
        processes = len(node["processes"])
        out.print(f"  {name:11} {addresses:32} {processes} processes", markup=False)
    out.print(f"  VIPs        {', '.join(found['vips'])}", markup=False)
    out.print("\nsockway lab exec client1 -- curl http://192.0.2.1/", markup=False)


__all__ = ["app"]
