"""``sockway lab``: the experiments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sockway.errors import SockwayError

app = typer.Typer(help="Experiments on this machine, in namespaces of their own.")

Output = Annotated[Path, typer.Option(help="Directory for the figures and the picture.")]
Full = Annotated[bool, typer.Option("--full", help="Twenty releases of each instead of three.")]
Releases = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Releases of each server by each system.")
]
Kinds = Annotated[
    list[str] | None,
    typer.Option("--load", help="Only this kind: http1, http3 or udp; repeatable."),
]
System = Annotated[
    str | None, typer.Option(help="Only this system: sockway, reuseport or takeover.")
]
Takeover = Annotated[
    bool, typer.Option("--takeover", help="Socket takeover too: what large sites did before.")
]


@app.callback()
def lab() -> None:
    """Experiments on this machine, in namespaces of their own."""


@app.command()
def release(
    *,
    output: Output = Path("out/demo"),
    full: Full = False,
    releases: Releases = None,
    load: Kinds = None,
    system: System = None,
    takeover: Takeover = False,
) -> None:
    """Release real servers under load, with and without Sockway; count what clients lost."""
    from sockway.lab.demo import FULL_RELEASES, QUICK_RELEASES, demo  # noqa: PLC0415
    from sockway.lab.suite import ALL_SYSTEMS, KINDS, SYSTEMS  # noqa: PLC0415

    known = {kind.key for kind in KINDS}
    if unknown := set(load or ()) - known:
        raise typer.BadParameter(f"{sorted(unknown)}: choose from {sorted(known)}")
    if system is not None and system not in ALL_SYSTEMS:
        raise typer.BadParameter(f"{system!r}: choose from {sorted(ALL_SYSTEMS)}")
    status = demo(
        output,
        releases=releases or (FULL_RELEASES if full else QUICK_RELEASES),
        kinds=tuple(kind for kind in KINDS if not load or kind.key in load),
        systems=(system,) if system else ALL_SYSTEMS if takeover else SYSTEMS,
    )
    raise typer.Exit(status)


def main() -> None:
    """Be ``python -m sockway.lab.demo``."""
    try:
        app(["release", *sys.argv[1:]])
    except SockwayError as error:
        sys.stderr.write(f"sockway: error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"  hint: {error.hint}\n")
        sys.exit(1)
