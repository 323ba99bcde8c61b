"""The commands, as typer sees them. What they do is elsewhere; here is how they are called."""

from __future__ import annotations

import sys
import time
from importlib import metadata
from typing import Annotated, Any

import typer

from sockway.cli import status as status_page
from sockway.cli.backend import app as backend
from sockway.cli.balancer import app as balancer
from sockway.cli.doctor import doctor
from sockway.cli.ids import app as ids
from sockway.cli.lab import app as lab
from sockway.cli.lab import release as demo
from sockway.cli.output import (
    UNEXPECTED,
    clear_errors,
    out,
    print_json,
    say,
    sentence,
    settings,
)
from sockway.cli.serve import serve
from sockway.cli.stamp import app as stamp
from sockway.errors import BusyError, NotFoundError, SockwayError
from sockway.serve.control import request
from sockway.serve.runtime import RuntimeDirectory
from sockway.sockets.service import Service
from sockway.sockets.state import check_name

app = typer.Typer(
    name="sockway",
    help="Releases servers without losing a connection: the kernel sends each packet to its owner.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Name = Annotated[str, typer.Argument(help="The service.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Return when the old generation has ended, not before.")
]


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"sockway {metadata.version('sockway')}")
        raise typer.Exit


@app.callback()
def _common(
    *,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    del version
    settings.debug = debug


app.command(context_settings={"ignore_unknown_options": False})(serve)


@app.command()
def release(name: Name, *, wait: Wait = False, json: Json = False) -> None:
    """Start a new generation, publish it when it is ready, and drain the old one.

    Fails, with exit status 1, if the new generation does not get ready; the old one then goes on.
    """
    with clear_errors(as_json=json):
        answer = _ask(name, {"command": "release", "wait": wait}, quiet=json)
        if json:
            print_json(answer)
        else:
            out.print(f"generation {answer['generation']} of {name} is published")


@app.command()
def rollback(
    name: Name,
    *,
    to: Annotated[
        int | None, typer.Option(help="A generation's number; the one before unless given.")
    ] = None,
    json: Json = False,
) -> None:
    """Publish an older generation that still lives, and drain the present one."""
    with clear_errors(as_json=json):
        if RuntimeDirectory(check_name(name)).supervisor() is None:
            with Service.attach(name) as service:
                answer = {"ok": True, "generation": service.rollback(to).number}
        else:
            answer = _ask(name, {"command": "rollback", "to": to}, quiet=json)
        if json:
            print_json(answer)
        else:
            out.print(f"generation {answer['generation']} of {name} is published again")


@app.command()
def drain(
    name: Name,
    generation: Annotated[int, typer.Argument(help="Its number.", show_default=False)],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
    json: Json = False,
) -> None:
    """Drain and end an older generation now, without the rest of its hold.

    Where no supervisor runs, its workers are ended by this command, which waits for that.
    """
    with clear_errors(as_json=json):
        runtime = RuntimeDirectory(check_name(name))
        if runtime.supervisor() is None:
            from sockway.serve.offline import drain_orphans  # noqa: PLC0415 - costly, seldom needed

            drain_orphans(name, generation, runtime, _ignore if json else _show_step)
            answer = {"ok": True, "generation": generation}
        else:
            command = {"command": "drain", "generation": generation, "wait": wait}
            answer = _ask(name, command, quiet=json)
        if json:
            print_json(answer)
        else:
            out.print(f"generation {generation} of {name} {'ended' if wait else 'drains'}")


@app.command()
def weights(
    name: Name,
    shares: Annotated[
        list[float], typer.Argument(help="A number for each worker; 0: no new flows.")
    ],
    *,
    generation: Annotated[
        int | None, typer.Option(help="Its number; the published one unless given.")
    ] = None,
    json: Json = False,
) -> None:
    """Change the workers' shares of new flows at once, for VIPs with spread=weights."""
    with clear_errors(as_json=json), Service.attach(name) as service:
        chosen = service.published if generation is None else service.get(generation)
        if chosen is None:
            raise NotFoundError(
                f"service {name} has nothing published", hint="name a generation: --generation"
            )
        chosen.set_weights(shares)
        answer = {
            "ok": True,
            "generation": chosen.number,
            "weights": [round(weight, 4) for weight in chosen.weights],
        }
        if json:
            print_json(answer)
        else:
            told = " ".join(f"{weight:.1%}" for weight in chosen.weights)
            out.print(f"generation {chosen.number} of {name}: {told}")


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(help="A service; all unless given.", show_default=False)
    ] = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Again each second.")] = False,
    json: Json = False,
) -> None:
    """Show services: generations, workers, what was decided, what a drain waits for."""
    with clear_errors(as_json=json):
        status_page.show(name, as_json=json, watch=watch)


@app.command()
def remove(
    name: Name,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Even if workers live; they are left alone.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove what is pinned of a service that no supervisor runs, of whatever version."""
    with clear_errors(as_json=json):
        runtime = RuntimeDirectory(check_name(name))
        if (pid := runtime.supervisor()) is not None:
            raise BusyError(
                f"service {name} is run by process {pid}", hint="stop that process: it removes it"
            )
        from sockway.serve.offline import remove_state  # noqa: PLC0415 - costly, seldom needed

        remove_state(name, runtime, force=force)
        if json:
            print_json({"ok": True, "name": name})
        else:
            out.print(f"{name} is removed")


@app.command()
def version(*, json: Json = False) -> None:
    """Show the version."""
    found = metadata.version("sockway")
    if json:
        print_json({"version": found})
    else:
        out.print(f"sockway {found}")


app.command()(doctor)
app.command("demo")(demo)
app.add_typer(balancer, name="balancer")
app.add_typer(backend, name="backend")
app.add_typer(stamp, name="stamp")
app.add_typer(ids, name="ids")
app.add_typer(lab, name="lab")


def main() -> None:
    """Run the command line; what nobody expected ends it in one line too."""
    try:
        app()
    except Exception as error:
        if settings.debug or isinstance(error, SockwayError):
            raise
        name = f"{type(error).__name__}: {error}"
        sys.stderr.write(
            f"sockway: error: unexpected {name}\n  hint: a bug; `sockway --debug ...` shows where\n"
        )
        sys.exit(UNEXPECTED)


def _show_step(event: dict[str, Any]) -> None:
    say(sentence(event))


def _ignore(event: dict[str, Any]) -> None:
    del event


def _ask(name: str, command: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Have the supervisor do it; its steps are shown as they come."""
    path = RuntimeDirectory(check_name(name)).control
    if not path.exists():
        # No such service at all is the clearer message.
        Service.attach(name).close()
    began = time.monotonic()
    for message in request(path, command):
        if "ok" in message:
            return message
        if not quiet:
            say(f"{time.monotonic() - began:6.2f} s  {sentence(message)}")
    raise NotFoundError("the supervisor ended before it answered", hint="look at its own output")
