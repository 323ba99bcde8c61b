"""Reading what the supervisor puts into a worker's environment."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sockway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

HINT: Final = "run the server by `sockway serve`, which sets it for each worker"


def variable(environment: Mapping[str, str], name: str) -> str:
    """A variable that has to be there.

    Raises:
        ConfigError: it is not; the error names it.

    """
    try:
        return environment[name]
    except KeyError:
        raise ConfigError(f"{name} is not in the environment", hint=HINT) from None


def number(environment: Mapping[str, str], name: str, lowest: int, highest: int) -> int:
    """A variable that is a number in a range.

    Raises:
        ConfigError: it is missing or can't be; the error names it and the range.

    """
    word = variable(environment, name)
    found = int(word) if re.fullmatch(r"[0-9]{1,10}", word) else -1
    if not lowest <= found <= highest:
        raise ConfigError(f"{name}={word} is not a number from {lowest} to {highest}", hint=HINT)
    return found


__all__ = ["HINT", "number", "variable"]
