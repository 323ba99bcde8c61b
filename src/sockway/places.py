"""Where in a TOML text a field stands, so that an error can point at it."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HEADER = re.compile(r"\s*(\[{1,2})\s*(.+?)\s*\]{1,2}\s*(#.*)?$")
_KEY = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")

Location = tuple[str | int, ...]


def lines_of(text: str) -> dict[Location, int]:
    """The line of each table and key of a TOML text, counted from 1.

    Good enough for how people write TOML: keys of inline tables have the line of their table.
    """
    found: dict[Location, int] = {}
    counts: dict[Location, int] = {}
    table: Location = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            path = _absolute(_parts(header[2]), counts)
            if header[1] == "[[":
                counts[path] = counts.get(path, -1) + 1
                path = (*path, counts[path])
            table = path
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, *_parts(key[1])), number)
    return found


def line_of(text: str, location: Sequence[str | int]) -> int | None:
    """The line of a field, or of the innermost table around it that the text has."""
    lines = lines_of(text)
    path = tuple(location)
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


def written(location: Sequence[str | int]) -> str:
    """A location as people write it: `pool.web.backends`, `vip[2].pool`."""
    out = ""
    for part in location:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


def _parts(dotted: str) -> Location:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def _absolute(path: Location, counts: dict[Location, int]) -> Location:
    """A header below an array of tables belongs to the array's last entry."""
    whole: Location = ()
    for position, part in enumerate(path):
        whole = (*whole, part)
        if whole in counts and position < len(path) - 1:
            whole = (*whole, counts[whole])
    return whole


__all__ = ["line_of", "lines_of", "written"]
