"""What a shell completes beside commands and options: names of what is there now.

A completion runs while somebody types. It asks what `status` asks and answers nothing where it
can't: no service, no balancer, no permission, another version. It never prints an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import wraps

import typer

Answer = list[str]


def _quiet(
    ask: Callable[[typer.Context], Iterable[str]],
) -> Callable[[typer.Context, str], Answer]:
    """Return a completion that gives what `ask` gives and begins as it is typed."""

    @wraps(ask)
    def answer(ctx: typer.Context, incomplete: str) -> Answer:
        found: list[str] = []
        with contextlib.suppress(Exception):
            found += ask(ctx)
        given = ctx.params.get("names") or ()
        return [name for name in found if name.startswith(incomplete) and name not in given]

    # typer looks at the parameters by name, and `wraps` would show it those of `ask`.
    del answer.__wrapped__
    answer.__annotations__ = {"ctx": typer.Context, "incomplete": str, "return": list}
    return answer


@_quiet
def services(_ctx: typer.Context) -> Iterator[str]:
    """Give the names of this network namespace's services."""
    from sockway.serve.takeover_state import TakeoverState  # noqa: PLC0415 - costly
    from sockway.sockets.state import service_names  # noqa: PLC0415

    yield from service_names()
    yield from TakeoverState.names()


@_quiet
def generations(ctx: typer.Context) -> Iterator[str]:
    """Give the numbers of the generations of the service that is named before."""
    from sockway.sockets.service import Service  # noqa: PLC0415 - costly

    with Service.attach(ctx.params["name"]) as service:
        yield from (str(generation.number) for generation in service.generations)


@_quiet
def balancers(_ctx: typer.Context) -> Iterator[str]:
    """Give the names of this network namespace's balancers."""
    from sockway.balancer.state import CURRENT, PREFIX, directory_of  # noqa: PLC0415 - costly

    for entry in sorted(directory_of("any", None).parent.glob(f"{PREFIX}*/{CURRENT}")):
        yield entry.parent.name.removeprefix(PREFIX)


@_quiet
def pools(ctx: typer.Context) -> Iterator[str]:
    """Give the names of a balancer's pools."""
    yield from (pool for pool, _ in _pools(ctx))


@_quiet
def backends(ctx: typer.Context) -> Iterator[str]:
    """Give the names of a balancer's backends, of one pool if that is named before."""
    wanted = ctx.params.get("pool")
    for pool, names in _pools(ctx):
        if wanted in {None, pool}:
            yield from names


@_quiet
def registered(ctx: typer.Context) -> Iterator[str]:
    """Give the names of the backends in the registry of server IDs."""
    from sockway.fleet import Registry, default_path  # noqa: PLC0415 - costly

    with Registry.open(ctx.params.get("registry") or default_path()) as registry:
        yield from (entry.name for entry in registry.entries())


@_quiet
def experiments(_ctx: typer.Context) -> Iterator[str]:
    """Give the names of the lab's experiments."""
    from sockway.lab.experiments import EXPERIMENTS  # noqa: PLC0415 - costly

    yield from EXPERIMENTS


def _pools(ctx: typer.Context) -> list[tuple[str, list[str]]]:
    from sockway.balancer import Balancer  # noqa: PLC0415 - costly

    # An option that was not typed has its default only after the whole line was read.
    with Balancer.existing(ctx.params.get("name") or "main") as balancer:
        return [(name, list(pool.backends)) for name, pool in balancer.spec.pool.items()]
