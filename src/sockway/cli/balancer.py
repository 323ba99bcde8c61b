"""``sockway balancer``: how its commands are called. What they do is in `sockway.balancer`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sockway.cli import complete
from sockway.cli.lazy import group
from sockway.cli.output import clear_errors, out, print_json, say, sentence
from sockway.errors import ConfigError

if TYPE_CHECKING:
    from sockway.balancer import Balancer, Captured, Change

app = group("The load balancer of this network namespace: VIPs, pools, backends.")

File = Annotated[Path, typer.Argument(help="Its configuration, TOML.", show_default=False)]
Name = Annotated[
    str, typer.Option("--name", help="The balancer.", autocompletion=complete.balancers)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Backend = Annotated[
    str, typer.Argument(help="The backend.", show_default=False, autocompletion=complete.backends)
]


@app.command()
def run(
    file: File,
    *,
    json: Annotated[bool, typer.Option("--json", help="Print each step as JSON.")] = False,
) -> None:
    """Apply a configuration and keep it true: next hops are looked after, SIGHUP reads it again.

    Forwarding does not end with this process, however it ends: `remove` ends it.
    """
    import asyncio  # noqa: PLC0415 - costly, and other commands do without

    from sockway.serve.agent import Agent  # noqa: PLC0415

    with clear_errors(as_json=json):
        agent = Agent(file, print_json if json else lambda event: say(sentence(event)))
        asyncio.run(agent.run())


@app.command()
def apply(
    file: File,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the changes only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask, on a terminal.")] = False,
    json: Json = False,
) -> None:
    """Show what a configuration changes, and bring it into force: all of it, or nothing."""
    with clear_errors(as_json=json):
        from sockway.balancer import Balancer, BalancerSpec  # noqa: PLC0415
        from sockway.balancer.plan import changes  # noqa: PLC0415
        from sockway.errors import NotFoundError  # noqa: PLC0415
        from sockway.fleet import bring, read_placed, report  # noqa: PLC0415
        from sockway.fleet.applying import in_force  # noqa: PLC0415
        from sockway.fleet.resolving import resolve_read  # noqa: PLC0415

        read = read_placed(file)
        before = in_force(read.name)
        spec = resolve_read(read, file, before)
        try:
            with Balancer.existing(spec.name) as balancer:
                found = balancer.plan(spec)
        except NotFoundError:
            found = changes(BalancerSpec(name=spec.name), spec)
        if not json:
            _show_changes(found)
        if dry_run:
            if json:
                print_json({"ok": True, "applied": False, "changes": _plain(found)})
            return
        if found and not (yes or json) and sys.stdin.isatty() and sys.stdout.isatty():
            typer.confirm("Apply?", abort=True)
        with Balancer.open(spec) as balancer:
            found = bring(balancer, read, file)
            revision = report(balancer, before)
            modes = balancer.modes.values()
        if json:
            told = {} if revision is None else {"revision": revision}
            places = {each.interface: {"mode": each.mode, "reason": each.reason} for each in modes}
            print_json(
                {"ok": True, "applied": True, "changes": _plain(found), "modes": places, **told}
            )
        else:
            for each in modes:
                out.print(
                    f"{each.interface}: {each.mode}; {each.reason}", markup=False, soft_wrap=True
                )
            told_of = "" if revision is None else f", with server IDs of revision {revision}"
            out.print(f"balancer {spec.name}: in force{told_of}")


@app.command()
def status(*, name: Name = "main", json: Json = False) -> None:
    """Show where it is attached, and the state and share of each backend."""
    with clear_errors(as_json=json), _existing(name) as balancer:
        from sockway.cli.balancer_pages import status_of, status_page  # noqa: PLC0415

        if json:
            print_json(status_of(balancer))
        else:
            out.print(status_page(balancer))


@app.command()
def stats(
    *,
    name: Name = "main",
    watch: Annotated[bool, typer.Option("--watch", help="Rates, again each second.")] = False,
    json: Json = False,
) -> None:
    """Show packets and octets: by VIP with what became of them, and by backend."""
    with clear_errors(as_json=json), _existing(name) as balancer:
        from sockway.cli import balancer_pages as pages  # noqa: PLC0415

        if watch:
            pages.watch_stats(balancer, as_json=json)
        elif json:
            print_json(balancer.counters().as_json())
        else:
            out.print(pages.stats_page(balancer.counters()))


@app.command()
def explain(
    protocol: Annotated[str | None, typer.Argument(help="tcp or udp.")] = None,
    client: Annotated[str | None, typer.Argument(help="ADDRESS:PORT of the client.")] = None,
    vip: Annotated[str | None, typer.Argument(help="ADDRESS:PORT of the VIP.")] = None,
    *,
    syn: Annotated[bool, typer.Option("--syn", help="TCP: the first packet.")] = False,
    connection_id: Annotated[
        str | None, typer.Option(help="UDP: a QUIC packet with this ID, as hexadecimal digits.")
    ] = None,
    frame: Annotated[
        str | None, typer.Option(help="A whole Ethernet frame instead, as hexadecimal digits.")
    ] = None,
    name: Name = "main",
    json: Json = False,
) -> None:
    """Ask the program in force what would become of a packet, and why. Nothing is sent."""
    with clear_errors(as_json=json):
        from sockway.balancer import frame_of  # noqa: PLC0415
        from sockway.cli.balancer_pages import explanation_page  # noqa: PLC0415

        if frame is not None:
            asked = _octets(frame)
        elif protocol and client and vip:
            octets = None if connection_id is None else _octets(connection_id)
            asked = frame_of(protocol, client, vip, "syn" if syn else "ack", octets)
        else:
            raise ConfigError(
                "there is no packet to explain",
                hint="sockway balancer explain tcp 198.51.100.7:40000 192.0.2.1:443, "
                "or --frame HEX",
            )
        with _existing(name) as balancer:
            found = balancer.explain(asked)
        if json:
            print_json(found.as_json())
        else:
            out.print(explanation_page(found))


@app.command()
def capture(
    vip: Annotated[
        str | None, typer.Argument(help="tcp://192.0.2.1:443; all unless given.")
    ] = None,
    *,
    write: Annotated[
        Path | None, typer.Option("--write", "-w", help="A pcapng file, for Wireshark.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many packets.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="End after so long.")] = None,
    every: Annotated[int, typer.Option(min=1, help="One of so many packets, by chance.")] = 1,
    name: Name = "main",
    json: Json = False,
) -> None:
    """Show packets as they come in, each with the decision that was taken. Ctrl-C ends it."""
    with clear_errors(as_json=json), _existing(name) as balancer:
        import time  # noqa: PLC0415

        from sockway.balancer import PcapngFile  # noqa: PLC0415

        until = time.monotonic() + seconds if seconds is not None else float("inf")
        number = 0
        with (
            PcapngFile.create(write) if write else nullcontext() as file,
            balancer.capture(vip, every=every) as running,
        ):
            try:
                for packet in running.packets(count, lambda: time.monotonic() >= until):
                    number += 1
                    if file is not None:
                        file.write(packet)
                    elif json:
                        print_json(packet.as_json())
                    else:
                        _show_packet(packet)
            except KeyboardInterrupt:
                pass
        if write and json:
            print_json({"ok": True, "file": str(write), "packets": number})
        elif write:
            say(f"{number} packets are in {write}")


@app.command()
def drain(backend: Backend, *, name: Name = "main", json: Json = False) -> None:
    """Have a backend keep the connections that it has and get no new ones."""
    with clear_errors(as_json=json), _existing(name) as balancer:
        balancer.set_drained(backend)
        _done(f"{backend} drains", as_json=json, backend=backend)


@app.command()
def restore(backend: Backend, *, name: Name = "main", json: Json = False) -> None:
    """Undo `drain` or `down`: the backend gets its share again."""
    with clear_errors(as_json=json), _existing(name) as balancer:
        balancer.restore(backend)
        _done(f"{backend} takes part", as_json=json, backend=backend)


@app.command()
def down(backend: Backend, *, name: Name = "main", json: Json = False) -> None:
    """Say that a backend is dead: all that it had goes to others at once."""
    with clear_errors(as_json=json), _existing(name) as balancer:
        balancer.set_down(backend)
        _done(f"{backend} is down", as_json=json, backend=backend)


@app.command()
def weight(
    pool: Annotated[
        str, typer.Argument(help="The pool.", show_default=False, autocompletion=complete.pools)
    ],
    backend: Backend,
    weight: Annotated[int, typer.Argument(help="0 to 65535.", show_default=False)],
    *,
    name: Name = "main",
    json: Json = False,
) -> None:
    """Give a backend another share of a pool's new connections, until the next `apply`."""
    with clear_errors(as_json=json), _existing(name) as balancer:
        found = balancer.set_weight(pool, backend, weight)
        if json:
            print_json({"ok": True, "changes": _plain(found)})
        else:
            _show_changes(found)


@app.command()
def remove(*, name: Name = "main", json: Json = False) -> None:
    """Detach it everywhere and remove all that is pinned: forwarding ends."""
    with clear_errors(as_json=json):
        from sockway.balancer import remove_balancer  # noqa: PLC0415
        from sockway.errors import SockwayError  # noqa: PLC0415
        from sockway.fleet.applying import forget, in_force  # noqa: PLC0415

        try:
            spec = in_force(name)
        except SockwayError:
            spec = None  # of another version, or not whole: it goes all the same
        remove_balancer(name)
        if spec is not None:
            forget(spec)
        _done(f"balancer {name} is removed", as_json=json, name=name)


def _existing(name: str) -> Balancer:
    from sockway.balancer import Balancer  # noqa: PLC0415 - costly: not for `sockway --help`

    return Balancer.existing(name)


def _plain(found: list[Change]) -> list[dict[str, Any]]:
    return [change.as_json() for change in found]


def _show_changes(found: list[Change]) -> None:
    for change in found:
        style = {"add": "green", "remove": "red", "change": "yellow"}[change.kind]
        out.print(str(change), style=style, markup=False, soft_wrap=True)
    if not found:
        out.print("nothing changes")


def _show_packet(packet: Captured) -> None:
    out.print(f"{packet.time:.6f} {packet.length:5d}  {packet.comment}", markup=False)


def _done(text: str, *, as_json: bool, **facts: Any) -> None:
    if as_json:
        print_json({"ok": True, **facts})
    else:
        out.print(text)


def _octets(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no row of hexadecimal digits, two for an octet") from None
