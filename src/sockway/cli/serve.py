"""`sockway serve`: its options, and how it shows what happens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sockway.cli.output import clear_errors, print_json, say, sentence
from sockway.errors import ConfigError
from sockway.serve.ready import KINDS

if TYPE_CHECKING:
    from sockway.serve.config import Source
    from sockway.serve.spec import ServeSpec
    from sockway.serve.supervisor import Supervisor
    from sockway.serve.takeover import TakeoverSupervisor

_RELEASING = "Releasing"
_ROUTING = "Routing"


def serve(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="The server, after `--`. {fd} is its first socket, {fd:NAME} or {fd1} another; "
            "{worker} and {generation} are numbers.",
            show_default=False,
        ),
    ] = None,
    *,
    listen: Annotated[
        list[str] | None,
        typer.Option(help="A VIP: tcp://[::]:8080, udp://[::]:4433?flow=quic. Repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the service; else the program's.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes, each with its own sockets. [default: 1]")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Read all this from a TOML file; options win over it.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="USER or USER:GROUP of the workers.")] = None,
    directory: Annotated[Path | None, typer.Option(help="Where the workers start.")] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for the workers; {fd} works here too.")
    ] = None,
    ready: Annotated[
        str | None,
        typer.Option(help=f"What shows that a worker is ready: {KINDS}. [default: auto]"),
    ] = None,
    ready_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds to get ready in. [default: 30]", rich_help_panel=_RELEASING),
    ] = None,
    ready_delay: Annotated[
        float | None,
        typer.Option(
            help="Seconds to live for --ready exec. [default: 1]", rich_help_panel=_RELEASING
        ),
    ] = None,
    hold: Annotated[
        float | None,
        typer.Option(
            help="Seconds that the old generation is kept as it is, for a rollback. [default: 0]",
            rich_help_panel=_RELEASING,
        ),
    ] = None,
    settle_timeout: Annotated[
        float | None,
        typer.Option(
            help="Most seconds until the old one has read what it was sent. [default: 5]",
            rich_help_panel=_RELEASING,
        ),
    ] = None,
    linger: Annotated[
        float | None,
        typer.Option(
            help="Most seconds for clients to leave the old one by themselves. [default: 5]",
            rich_help_panel=_RELEASING,
        ),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds from the stop signal to the kill. [default: 30]",
            rich_help_panel=_RELEASING,
        ),
    ] = None,
    stop_signal: Annotated[
        str | None,
        typer.Option(
            help="Tells a worker to finish; nginx wants QUIT. [default: TERM]",
            rich_help_panel=_RELEASING,
        ),
    ] = None,
    backlog: Annotated[
        int | None,
        typer.Option(help="Longest accept queue. [default: 4096]", rich_help_panel=_ROUTING),
    ] = None,
    flows: Annotated[
        int | None,
        typer.Option(help="UDP flows to remember. [default: 65536]", rich_help_panel=_ROUTING),
    ] = None,
    takeover: Annotated[
        bool,
        typer.Option(
            "--takeover",
            help="Release by socket takeover, which Sockway replaces: no BPF, Python servers only.",
            rich_help_panel=_RELEASING,
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print each step as JSON.")] = False,
) -> None:
    """Run a server, and release it on SIGHUP or `sockway release` without losing a connection.

    Each worker is a process with its own socket for each VIP, passed as systemd does (LISTEN_FDS)
    and by the placeholders. SIGTERM ends the service; a second one ends it at once.
    """
    given = {
        "command": command or None,
        "listen": listen or None,
        "name": name,
        "workers": workers,
        "user": user,
        "directory": directory,
        "ready": ready,
        "ready_timeout": ready_timeout,
        "ready_delay": ready_delay,
        "hold": hold,
        "settle_timeout": settle_timeout,
        "linger": linger,
        "drain_timeout": drain_timeout,
        "stop_signal": stop_signal,
        "backlog": backlog,
        "flows": flows,
        "takeover": takeover or None,
    }
    import asyncio  # noqa: PLC0415 - these take a third of a second, which other commands save

    from sockway.serve.config import Source  # noqa: PLC0415

    with clear_errors(as_json=json):
        options = {field: value for field, value in given.items() if value is not None}
        source = Source(config, {**options, **_environment(env)})
        raise SystemExit(asyncio.run(_run(source, as_json=json)))


async def _run(source: Source, *, as_json: bool) -> int:
    spec = source.read()
    supervisor = _kind(spec)(
        spec,
        tell=print_json if as_json else lambda event: say(f"{spec.name}: {sentence(event)}"),
        print_line=_LinePrinter(spec, sys.stderr if as_json else sys.stdout),
        reread=source.read,
    )
    return await supervisor.run()


def _kind(spec: ServeSpec) -> type[Supervisor | TakeoverSupervisor]:
    if spec.takeover:
        from sockway.serve.takeover import TakeoverSupervisor  # noqa: PLC0415

        return TakeoverSupervisor
    from sockway.serve.supervisor import Supervisor  # noqa: PLC0415

    return Supervisor


class _LinePrinter:
    """Shows what workers print."""

    def __init__(self, spec: ServeSpec, stream: Any) -> None:
        self._prefix = spec.log_prefix
        self._stream = stream

    def __call__(self, generation: int, worker: int, line: str) -> None:
        prefix = f"{generation}.{worker} | " if self._prefix else ""
        self._stream.write(f"{prefix}{line}\n")
        self._stream.flush()


def _environment(pairs: list[str] | None) -> dict[str, dict[str, str]]:
    if not pairs:
        return {}
    split = [pair.partition("=") for pair in pairs]
    for key, equals, _ in split:
        if not (key and equals):
            raise ConfigError(f"--env {key!r} has no value", hint="write it as NAME=VALUE")
    return {"env": {key: value for key, _, value in split}}
