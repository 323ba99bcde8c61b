"""``sockway lab``: experiments, the demo, networks."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sockway.cli import complete
from sockway.cli.lazy import group
from sockway.cli.output import clear_errors, out, print_json, say
from sockway.errors import ConfigError
from sockway.extras import need

if TYPE_CHECKING:
    from sockway.lab.runner import Done

app = group("Experiments on this machine, in namespaces of their own.")

LabName = Annotated[str, typer.Argument(help="The lab.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Kinds = Annotated[
    list[str] | None,
    typer.Option("--load", help="Only this kind: http1, http3 or udp; repeatable."),
]


@app.command()
def release(
    *,
    output: Annotated[Path, typer.Option(help="Directory for the figures and the picture.")] = Path(
        "out/demo"
    ),
    full: Annotated[
        bool, typer.Option("--full", help="Twenty releases of each instead of three.")
    ] = False,
    releases: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Releases of each server by each system.")
    ] = None,
    load: Kinds = None,
    system: Annotated[
        str | None, typer.Option(help="Only this system: sockway, reuseport or takeover.")
    ] = None,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Socket takeover too: what large sites did before.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Release real servers under load, with and without Sockway; count what clients lost."""
    with clear_errors(as_json=json):
        need("lab")
        from sockway.lab.demo import FULL_RELEASES, QUICK_RELEASES, Demo  # noqa: PLC0415
        from sockway.lab.suite import ALL_SYSTEMS, KINDS, SYSTEMS  # noqa: PLC0415

        known = {kind.key for kind in KINDS}
        if unknown := set(load or ()) - known:
            raise ConfigError(
                f"there is no load {', '.join(sorted(unknown))}", hint=", ".join(sorted(known))
            )
        if system is not None and system not in ALL_SYSTEMS:
            raise ConfigError(f"there is no system {system!r}", hint=", ".join(ALL_SYSTEMS))
        demo = Demo(
            releases or (FULL_RELEASES if full else QUICK_RELEASES),
            tuple(kind for kind in KINDS if not load or kind.key in load),
            (system,) if system else ALL_SYSTEMS if takeover else SYSTEMS,
        )
        figures, lost_nothing = demo.run(output, show_on_stderr=json)
        if json:
            print_json(figures)
    raise typer.Exit(0 if lost_nothing else 1)


@app.command()
def run(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which; all unless given. See `sockway lab list`.",
            autocompletion=complete.experiments,
        ),
    ] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller and shorter.")] = False,
    output: Annotated[Path, typer.Option(help="Directory for the report, figures, plots.")] = Path(
        "out/lab"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn by lot.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Run experiments in namespaces of their own: each system beside what it replaces.

    Writes report.html, results.json and the plots. Exit status 1 if an experiment was not finished;
    the others are run all the same.
    """
    with clear_errors(as_json=json):
        from sockway.lab.experiments import chosen  # noqa: PLC0415
        from sockway.lab.page import write  # noqa: PLC0415
        from sockway.lab.runner import Run, run_all  # noqa: PLC0415

        wanted = chosen(experiments or [])
        how = Run(output, quick, seed)
        done = run_all(wanted, how)
        found, page = write(done, how, experiments or [])
        if json:
            print_json(found.model_dump(exclude_none=True))
        else:
            for each in done:
                _tell(each)
            out.print(f"Report: {page.resolve()}", soft_wrap=True)
        failed = [each.experiment.name for each in done if each.result.error]
        if failed:
            say(f"not finished: {', '.join(failed)}")
            raise typer.Exit(1)


def _tell(done: Done) -> None:
    """What an experiment found, in a sentence for each of its plots."""
    if done.findings is None:
        return
    from rich.padding import Padding  # noqa: PLC0415 - costly
    from rich.text import Text  # noqa: PLC0415

    out.print(done.experiment.name, style="bold")
    for plot in done.findings.plots:
        out.print(Padding(Text(plot.sentence), (0, 0, 0, 2), expand=False))


@app.command("list")
def list_experiments(*, json: Json = False) -> None:
    """List the experiments that `sockway lab run` has."""
    from sockway.lab.experiments import EXPERIMENTS  # noqa: PLC0415

    if json:
        print_json({each.name: each.description for each in EXPERIMENTS.values()})
        return
    for each in EXPERIMENTS.values():
        out.print(f"{each.name:10} {each.description}", markup=False)


@app.command()
def up(
    topology: Annotated[
        Path | None, typer.Argument(help="The network, TOML; a small one unless given.")
    ] = None,
    *,
    encapsulation: Annotated[str, typer.Option(help="Of the tunnels: ip or gue.")] = "ip",
    tunnel: Annotated[int, typer.Option(help="IP version of the tunnels: 4 or 6.")] = 4,
    bare: Annotated[bool, typer.Option("--bare", help="The network only; start nothing.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Where to draw the network, as SVG.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Build a network in namespaces, with backends and balancers that run.

    Clients reach its VIPs, the first hosts' addresses of the topology's prefixes:
    sockway lab exec client1 -- curl http://192.0.2.1/
    """
    with clear_errors(as_json=json):
        network_commands = _network_commands()

        if encapsulation not in {"ip", "gue"}:
            raise ConfigError(f"--encapsulation {encapsulation!r}", hint="ip or gue")
        if tunnel not in {4, 6}:
            raise ConfigError(f"--tunnel {tunnel}", hint="4 or 6")
        chosen: Literal["ip", "gue"] = "gue" if encapsulation == "gue" else "ip"
        _show_lab(
            network_commands.up(topology, chosen, tunnel, bare=bare, drawing=picture), as_json=json
        )


@app.command()
def draw(
    topology: Annotated[
        Path | None, typer.Argument(help="The network, TOML; a small one unless given.")
    ] = None,
    *,
    output: Annotated[Path, typer.Option(help="The picture, SVG.")] = Path("lab.svg"),
    json: Json = False,
) -> None:
    """Check a description of a network and draw it; nothing is built."""
    with clear_errors(as_json=json):
        network_commands = _network_commands()

        network_commands.draw(topology, output)
        if json:
            print_json({"ok": True, "picture": str(output)})
        else:
            out.print(f"Drawn: {output}", markup=False, soft_wrap=True)


@app.command()
def status(name: LabName = "lab", *, json: Json = False) -> None:
    """Show a lab that is up: its picture, hosts, processes."""
    with clear_errors(as_json=json):
        network_commands = _network_commands()

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
        network_commands = _network_commands()

        raise typer.Exit(network_commands.execute(name, node, command))


@app.command()
def down(name: LabName = "lab", *, json: Json = False) -> None:
    """Take a lab down: its processes end, its namespaces go."""
    with clear_errors(as_json=json):
        network_commands = _network_commands()

        network_commands.down(name)
        if json:
            print_json({"ok": True, "name": name})
        else:
            out.print(f"lab {name} is down")


def _network_commands() -> ModuleType:
    """Import what networks are made with; hosts of a lab need all of the extra."""
    need("lab")
    from sockway.lab import network_commands  # noqa: PLC0415 - costly

    return network_commands


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
    vip = found["vips"][0].removeprefix("tcp").removesuffix(":80")
    client = next(name for name, node in found["nodes"].items() if node["role"] == "client")
    where = "" if found["name"] == "lab" else f"--name {found['name']} "
    out.print(f"\nsockway lab exec {where}{client} -- curl http{vip}/", markup=False)


__all__ = ["app"]
