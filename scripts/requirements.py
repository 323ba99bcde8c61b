"""Print what pyproject.toml requires, one requirement a line.

``requirements.py build`` prints the build requirements, ``requirements.py EXTRA``
those of the package with that extra. pip can't install a project's requirements
without the project, and here they have to be there before its wheel is built.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

OWN_EXTRA = re.compile(r"sockway\[(?P<extra>\w+)\]")


def requirements(project: dict[str, Any], extra: str) -> list[str]:
    """The package's requirements with one extra, extras of its own resolved."""
    found = list(project["dependencies"])
    for requirement in project["optional-dependencies"][extra]:
        own = OWN_EXTRA.fullmatch(requirement)
        found += requirements(project, own["extra"]) if own else [requirement]
    return list(dict.fromkeys(found))


def main() -> None:
    """Print the requirements that the command line asks for."""
    path = Path(__file__).parent.parent / "pyproject.toml"
    config = tomllib.loads(path.read_text(encoding="utf-8"))
    wanted = sys.argv[1]
    if wanted == "build":
        lines = config["build-system"]["requires"]
    else:
        lines = requirements(config["project"], wanted)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
