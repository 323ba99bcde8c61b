"""Print the data plane's programs: their size, and what the verifier went through for them.

All programs of an object are loaded together, as the control plane loads them, so this also shows
that they pass together. Needs root.
"""

from __future__ import annotations

import sys
from importlib import resources

from rich.console import Console
from rich.table import Table

from sockway.errors import SockwayError
from sockway.kernel import BpfObject


def _rows(name: str, source: bytes) -> list[tuple[str, ...]]:
    rows = []
    with BpfObject.open(source, name=name) as spec:
        specs = dict(spec.programs)
        spec.load()
        for program_name, program_spec in specs.items():
            with spec.program(program_name) as program:
                jitted, translated, verified = program.sizes
            counts = (program_spec.instructions, translated, jitted, verified)
            rows.append((name, program_name, *(f"{count:,}" for count in counts)))
    return rows


def main() -> None:
    """Print a table of all objects."""
    table = Table(title="BPF programs, all of an object loaded together", title_justify="left")
    for column in ("object", "program", "compiled", "translated", "jitted, octets", "verified"):
        table.add_column(column, justify="left" if column in {"object", "program"} else "right")
    folder = resources.files("sockway.kernel").joinpath("objects")
    try:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if entry.name.endswith(".bpf.o"):
                for row in _rows(entry.name.removesuffix(".bpf.o"), entry.read_bytes()):
                    table.add_row(*row)
    except SockwayError as error:
        sys.exit(f"programs: {error}")
    Console().print(table)


if __name__ == "__main__":
    main()
