"""A Python environment that has Sockway and nothing that comes with its extras.

It is a virtual environment whose packages are links to those of this one: the installed wheel, what
it requires without any extra, and what that requires. So it is what `pip install sockway` makes,
without another download.
"""

from __future__ import annotations

import sys
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def required(name: str, extras: frozenset[str] = frozenset()) -> Iterator[metadata.Distribution]:
    """Give the distribution and all that it requires."""
    found: dict[str, metadata.Distribution] = {}

    def add(name: str, extras: frozenset[str]) -> None:
        if name in found and not extras:
            return
        found[name] = metadata.distribution(name)
        for line in found[name].requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in extras | {""}):
                add(requirement.name.lower(), frozenset(requirement.extras))

    add(name, extras)
    yield from found.values()


def make(directory: Path) -> Path:
    """Make the environment in a directory; return its interpreter."""
    venv.create(directory, symlinks=True, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = directory / "lib" / version / "site-packages"
    for distribution in required("sockway"):
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    return directory / "bin" / "python"
