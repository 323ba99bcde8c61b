"""Load each program of each object by itself, and write what the verifier said, as JSON.

Runs in a machine, with the installed Sockway: one program that is refused does not hide the next.
"""

from __future__ import annotations

import json
import sys
from importlib import resources

from sockway.errors import KernelError, SockwayError
from sockway.kernel import BpfObject


def _names(source: bytes, name: str) -> list[str]:
    with BpfObject.open(source, name=name) as spec:
        return list(spec.programs)


def _load(source: bytes, name: str, program: str) -> dict[str, object]:
    row: dict[str, object] = {"object": name, "program": program}
    try:
        with BpfObject.open(source, name=name) as spec:
            for other, settings in spec.programs.items():
                settings.set_autoload(other == program)
            spec.load()
            with spec.program(program) as loaded:
                row["verified"] = loaded.sizes[2]
    except SockwayError as error:
        log = getattr(error, "log", "") if isinstance(error, KernelError) else ""
        row["error"] = str(error)
        row["log"] = log.strip().splitlines()[-12:]
    return row


def main() -> int:
    """Print a JSON list; the status tells whether all were loaded."""
    folder = resources.files("sockway.kernel").joinpath("objects")
    rows = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".bpf.o"):
            source, name = entry.read_bytes(), entry.name.removesuffix(".bpf.o")
            rows += [_load(source, name, program) for program in _names(source, name)]
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
