"""``sockway backend``: this host behind balancers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sockway.cli.lazy import group
from sockway.cli.output import clear_errors, out, print_json, waiting
from sockway.cli.stamp import described
from sockway.errors import NotFoundError, SockwayError

if TYPE_CHECKING:
    from sockway.balancer.host import Host, HostSpec
    from sockway.balancer.stamping import Stamping

app = group("This host as a backend: VIPs on its loopback, tunnels of balancers opened.")

Name = Annotated[str, typer.Option("--name", help="The backend's set-up.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def up(
    file: Annotated[Path, typer.Argument(help="Its configuration, TOML.", show_default=False)],
    *,
    wait: Annotated[
        float,
        typer.Option(
            min=0,
            help="With [stamp]: seconds to wait for balancers that don't know the registry's ID.",
        ),
    ] = 0.0,
    json: Json = False,
) -> None:
    """Set this host up, or change what is set up: all of it, or nothing."""
    with clear_errors(as_json=json):
        from sockway.balancer.host import HostSpec  # noqa: PLC0415 - costly

        spec = HostSpec.read(file)
        host, server_id = _up(spec, wait)
        if json:
            shown = {"ok": True, "name": spec.name, "interfaces": host.interfaces}
            print_json(shown | ({"server_id": server_id} if spec.stamp else {}))
        else:
            vips = ", ".join(map(str, spec.vips))
            out.print(f"tunnels to {vips} are opened on {', '.join(host.interfaces)}")
            if spec.stamp:
                out.print("connections are stamped: `sockway backend status`")


@app.command()
def down(*, name: Name = "main", json: Json = False) -> None:
    """Undo all of it: what was there before is there again. Stamps end first."""
    with clear_errors(as_json=json):
        from sockway.balancer.host import Host  # noqa: PLC0415

        host = Host.existing(name)
        _end_stamps(host)
        host.down()
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
        stamping = _stamps(host)
        if json:
            stamped: dict[str, Any] | None = None
            if stamping is not None:
                stamped = stamping.stamped().as_json() | {"counters": stamping.counters()}
            print_json(
                {
                    "name": name,
                    "interfaces": host.interfaces,
                    "vips": journal.vips,
                    "sysctls_before": journal.sysctls,
                    "counters": counters,
                    "stamp": stamped,
                }
            )
            return
        out.print(f"backend {name} on {', '.join(host.interfaces) or 'no interface'}")
        out.print(f"put on the loopback: {', '.join(journal.vips) or 'nothing'}")
        _show(counters)
        if stamping is not None:
            for what, said in described(stamping.stamped()).items():
                out.print(f"stamps, {what}: {said}", soft_wrap=True, markup=False)
            _show(stamping.counters())
        elif journal.stamp is not None:
            out.print(f"stamps {journal.stamp} have been taken off")


def _show(counters: dict[str, int]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for what, number in counters.items():
        table.add_row(what, f"{number:,}")
    out.print(table)


def _up(spec: HostSpec, wait: float) -> tuple[Host, int]:
    """Stamp, then open tunnels: balancers that lack the ID are the likelier refusal."""
    from sockway.balancer.host import Host  # noqa: PLC0415 - costly
    from sockway.balancer.stamping import Stamping  # noqa: PLC0415
    from sockway.fleet.telling import stamp_up  # noqa: PLC0415

    try:
        before = Host.existing(spec.name).journal().stamp
    except NotFoundError:
        before = None
    server_id, was_there = 0, False
    if spec.stamp is not None:
        was_there = spec.stamp.name in Stamping.names()
        with waiting(wait):
            server_id = stamp_up(spec.stamp, wait=wait)
    try:
        host = Host.up(spec)
    except BaseException:
        if spec.stamp is not None and not was_there:
            with contextlib.suppress(SockwayError):  # what went wrong first is what is told
                _off(spec.stamp.name)
        raise
    after = spec.stamp.name if spec.stamp else None
    if before is not None and before != after:
        _off(before)
    return host, server_id


def _stamps(host: Host) -> Stamping | None:
    """Those that came with a backend, if they are there."""
    from sockway.balancer.stamping import Stamping  # noqa: PLC0415 - costly

    name = host.journal().stamp
    return Stamping.existing(name) if name is not None and name in Stamping.names() else None


def _end_stamps(host: Host) -> None:
    """Before tunnels are closed: no ID is told of a host that can't be reached."""
    name = host.journal().stamp
    if name is not None:
        _off(name)


def _off(name: str) -> None:
    """Take stamps off, and tell the registry, also if they were taken off by hand."""
    from sockway.fleet.telling import stamp_down  # noqa: PLC0415 - costly

    with contextlib.suppress(NotFoundError):
        stamp_down(name)
