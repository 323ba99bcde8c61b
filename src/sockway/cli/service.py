"""Commands about one service: release, rollback, drain, weights, status, remove."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from sockway.cli import complete
from sockway.cli.output import clear_errors, print_json, say, sentence, write
from sockway.errors import BusyError, NotFoundError
from sockway.serve.asking import request
from sockway.serve.runtime import RuntimeDirectory
from sockway.sockets.service import Service
from sockway.sockets.state import check_name

Name = Annotated[
    str,
    typer.Argument(help="The service.", show_default=False, autocompletion=complete.services),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Return when the old generation has ended, not before.")
]


def release(name: Name, *, wait: Wait = False, json: Json = False) -> None:
    """Start a new generation, publish it when it is ready, and drain the old one.

    Fails, with exit status 1, if the new generation does not get ready; the old one then goes on.
    """
    with clear_errors(as_json=json):
        answer = _ask(name, {"command": "release", "wait": wait}, quiet=json)
        if json:
            print_json(answer)
        else:
            write(f"generation {answer['generation']} of {name} is published")


def rollback(
    name: Name,
    *,
    to: Annotated[
        int | None,
        typer.Option(
            help="A generation's number; the one before unless given.",
            autocompletion=complete.generations,
        ),
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
            write(f"generation {answer['generation']} of {name} is published again")


def drain(
    name: Name,
    generation: Annotated[
        int,
        typer.Argument(help="Its number.", show_default=False, autocompletion=complete.generations),
    ],
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
            write(f"generation {generation} of {name} {'ended' if wait else 'drains'}")


def weights(
    name: Name,
    shares: Annotated[
        list[float], typer.Argument(help="A number for each worker; 0: no new flows.")
    ],
    *,
    generation: Annotated[
        int | None,
        typer.Option(
            help="Its number; the published one unless given.",
            autocompletion=complete.generations,
        ),
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
            write(f"generation {chosen.number} of {name}: {told}")


def status(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A service; all unless given.",
            show_default=False,
            autocompletion=complete.services,
        ),
    ] = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Again each second.")] = False,
    json: Json = False,
) -> None:
    """Show services: generations, workers, what was decided, what a drain waits for."""
    with clear_errors(as_json=json):
        from sockway.cli import status as page  # noqa: PLC0415 - costly

        page.show(name, as_json=json, watch=watch)


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
            write(f"{name} is removed")


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
