"""Runs a Python program with our connection IDs: `python -m sockway.quic hypercorn app:app ...`.

For servers on aioquic whose application can't be changed. The program is named as its command
is; it runs in this process.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Final

from sockway.errors import ConfigError, SockwayError
from sockway.quic.aioquic import install_from_environment_if_present

USAGE_ERROR: Final = 2


def main(arguments: list[str]) -> int | None:
    """Run a command with its arguments; its exit status.

    Args:
        arguments: the command's name, then what it is given.

    """
    try:
        if not arguments:
            raise ConfigError("no command", hint="python -m sockway.quic hypercorn app:app ...")
        found = entry_points(group="console_scripts", name=arguments[0])
        if not found:
            raise ConfigError(
                f"{arguments[0]} is not the command of a Python package here",
                hint=f"install it beside Sockway: {sys.executable} -m pip install ...",
            )
        install_from_environment_if_present()
    except SockwayError as error:
        sys.stderr.write(f"sockway: error: {error.message}\n  hint: {error.hint}\n")
        return USAGE_ERROR
    command = next(iter(found)).load()
    sys.argv = arguments
    status: int | None = command()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
