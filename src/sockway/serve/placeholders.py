"""The placeholders of commands and environment: `{fd}`, `{fd1}`, `{fd:NAME}`, `{worker}`, ...

Anything else in braces is left as it is, so that configuration snippets can be arguments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sockway.errors import ConfigError
from sockway.wire.addresses import Vip

if TYPE_CHECKING:
    from sockway.serve.spec import ServeSpec

FIRST_FD: Final = 3
"""The first descriptor that a worker inherits beside its standard ones (sd_listen_fds(3))."""
_PLACEHOLDER: Final = re.compile(
    r"\{(?:fd(?P<index>[0-9]*)|fd:(?P<name>[^{}]*)|(?P<word>worker|generation))\}"
)


def socket_names(vips: Sequence[Vip]) -> list[str]:
    """What each VIP's socket is called in LISTEN_FDNAMES: its name, or as `tcp-8080`."""
    return [vip.name or f"{vip.protocol}-{vip.port}" for vip in vips]


def fill(text: str, vips: Sequence[Vip], *, generation: int, worker: int) -> str:
    """Fill in the placeholders of one argument or value.

    Raises:
        ConfigError: a placeholder names a socket that is not there.

    """

    def value(match: re.Match[str]) -> str:
        if match["word"]:
            return str(generation if match["word"] == "generation" else worker)
        if match["name"] is not None:
            names = socket_names(vips)
            if names.count(match["name"]) != 1:
                is_there = match["name"] in names
                raise ConfigError(
                    f"{match[0]} names {'several sockets' if is_there else 'no socket'}",
                    hint=f"sockets are {', '.join(names)}; name one with ?name= in --listen",
                )
            return str(FIRST_FD + names.index(match["name"]))
        index = int(match["index"] or 0)
        if index >= len(vips):
            raise ConfigError(
                f"{match[0]}: there are {len(vips)} sockets",
                hint=f"use {{fd0}} to {{fd{len(vips) - 1}}}",
            )
        return str(FIRST_FD + index)

    return _PLACEHOLDER.sub(value, text)


def check(spec: ServeSpec) -> None:
    """Try all placeholders of a spec.

    Raises:
        ConfigError: one names a socket that is not there.

    """
    for text in (*spec.command, *spec.env.values()):
        fill(text, spec.vips, generation=1, worker=0)
