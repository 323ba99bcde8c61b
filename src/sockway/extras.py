"""What comes with an extra of the package, and the one sentence that says so where it is missing.

`pip install sockway` brings what is needed to route packets. Servers on aioquic need the extra
`quic`, and the experiments need `lab`. Whatever imports a module of an extra may fail anywhere, so
the error is translated in one place: commands, `python -m sockway.quic` and the lab's processes
run inside `clear_imports()`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import util
from typing import Final

from sockway.errors import MissingExtra

MODULES: Final = {
    "aioquic": "quic",
    "cryptography": "quic",
    "granian": "lab",
    "gunicorn": "lab",
    "h2": "lab",
    "httptools": "lab",
    "hypercorn": "lab",
    "jinja2": "lab",
    "markupsafe": "lab",
    "matplotlib": "lab",
    "numpy": "lab",
    "uvicorn": "lab",
}
"""Modules that an extra brings, by itself or through what it depends on, and the smallest one."""
_ALSO: Final = {"quic": {"quic"}, "lab": {"quic", "lab"}}
"""What an extra contains."""


def need(extra: str) -> None:
    """Return if all of an extra is installed; call it before work that other processes do.

    Nothing is imported.

    Args:
        extra: `quic` or `lab`.

    Raises:
        MissingExtra: names what is missing, and how to install it.

    """
    wanted = (module for module, home in MODULES.items() if home in _ALSO[extra])
    missing = [module for module in wanted if util.find_spec(module) is None]
    if missing:
        raise _missing(", ".join(missing), extra, plural=len(missing) > 1)


@contextlib.contextmanager
def clear_imports() -> Iterator[None]:
    """Turn the lack of an extra's module in the block into one clear error.

    Raises:
        MissingExtra: a module of an extra is not installed. The lack of any other module is not
            touched: it is a fault of the installation, or a bug.

    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if isinstance(error, MissingExtra) or module not in MODULES:
            raise
        raise _missing(module, MODULES[module], plural=False) from error


def _missing(what: str, extra: str, *, plural: bool) -> MissingExtra:
    verb = "are" if plural else "is"
    return MissingExtra(
        f"{what} {verb} not installed; this needs Sockway with the extra [{extra}]",
        hint=f"pip install 'sockway[{extra}]'",
    )


__all__ = ["MODULES", "clear_imports", "need"]
