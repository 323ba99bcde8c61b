"""The top level of the command: its own options, and where its commands are."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final

import typer

from sockway.cli.lazy import CONTEXT, Entry, lazy_group
from sockway.cli.output import UNEXPECTED, clear_errors, print_json, settings, write
from sockway.errors import SockwayError
from sockway.version import VERSION

_SERVICE: Final = "sockway.cli.service"
COMMANDS: Final = {
    "serve": Entry("sockway.cli.serve", "serve",
        "Run a server, and release it on SIGHUP or `sockway release` without losing a connection."),
    "release": Entry(_SERVICE, "release",
        "Start a new generation, publish it when it is ready, and drain the old one."),
    "rollback": Entry(_SERVICE, "rollback",
        "Publish an older generation that still lives, and drain the present one."),
    "drain": Entry(_SERVICE, "drain",
        "Drain and end an older generation now, without the rest of its hold."),
    "weights": Entry(_SERVICE, "weights",
        "Change the workers' shares of new flows at once, for VIPs with spread=weights."),
    "status": Entry(_SERVICE, "status",
        "Show services: generations, workers, what was decided, what a drain waits for."),
    "remove": Entry(_SERVICE, "remove",
        "Remove what is pinned of a service that no supervisor runs, of whatever version."),
    "version": Entry("sockway.cli.commands", "version", "Show the version."),
    "doctor": Entry("sockway.cli.doctor", "doctor",
        "Tell what this machine can do, and what to do about what it can't."),
    "demo": Entry("sockway.cli.lab", "release",
        "Release real servers under load, with and without Sockway; count what clients lost."),
    "balancer": Entry("sockway.cli.balancer", "app",
        "The load balancer of this network namespace: VIPs, pools, backends."),
    "backend": Entry("sockway.cli.backend", "app",
        "This host as a backend: VIPs on its loopback, tunnels of balancers opened."),
    "stamp": Entry("sockway.cli.stamp", "app",
        "TCP connections that carry their server's ID, for balancers without memory."),
    "ids": Entry("sockway.cli.ids", "app",
        "Server IDs of a fleet: who has which, and who knows it."),
    "lab": Entry("sockway.cli.lab", "app",
        "Experiments on this machine, in namespaces of their own."),
}  # fmt: skip
"""In the order of `sockway --help`. A test holds the sentences against the commands' own."""
_COMPLETING: Final = "_SOCKWAY_COMPLETE"

app = typer.Typer(
    name="sockway",
    cls=lazy_group(COMMANDS),
    help="Releases servers without losing a connection: the kernel sends each packet to its owner.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        write(f"sockway {VERSION}")
        raise typer.Exit


@app.callback()
def _common(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del version
    settings.debug = debug


def version(*, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the version."""
    if json:
        print_json({"version": VERSION})
    else:
        write(f"sockway {VERSION}")


def main() -> None:
    """Run the command line; what nobody expected ends it in one line too."""
    try:
        # Also around what a command does before its own `clear_errors`, such as its imports.
        with clear_errors():
            app()
    except Exception as error:
        if _COMPLETING in os.environ:
            sys.exit(1)  # somebody is typing: whatever is wrong, their line stays as it is
        if settings.debug or isinstance(error, SockwayError):
            raise
        name = f"{type(error).__name__}: {error}"
        sys.stderr.write(
            f"sockway: error: unexpected {name}\n  hint: a bug; `sockway --debug ...` shows where\n"
        )
        sys.exit(UNEXPECTED)


__all__ = ["COMMANDS", "app", "main"]
