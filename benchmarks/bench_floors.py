"""How fast a socket router can be at all, on this machine and kernel.

Four programs that do less than the router does, on the same sockets as the kernel's own
SO_REUSEPORT hash, in the rounds of `bench_router`: an empty one, one that chooses a socket
from the one array that there is, and two that find that array in an array of maps or in a
hash of maps. No router can have a better ratio than the second; the difference of the last
two is why the router's `arrays` is an array of maps.

``python benchmarks/bench_floors.py [--quick] [--output DIRECTORY]``, as root.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import time
from pathlib import Path

from bench_router import figures, table
from rich.console import Console

from sockway.kernel import BpfObject
from sockway.lab.packets import CASES, TARGET
from sockway.lab.router_cost import WORKERS, Flood, Rates, answers_go_nowhere, compare, pin
from sockway.lab.sandbox import sandbox

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from hatch_build import compile_object  # noqa: E402

PORT = 7101
PROGRAMS = {
    "empty": "an empty program",
    "one_array": "a choice from one array",
    "array_of_maps": "from an array of maps",
    "hash_of_maps": "from a hash of maps",
}


def _sockets(floors: BpfObject) -> list[socket.socket]:
    made = []
    for number in range(WORKERS):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((socket.inet_ntoa(TARGET), PORT))
        floors.map("sockets")[number] = sock.fileno()
        made.append(sock)
    return made


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--output", type=Path, default=Path("out/bench"))
    options = parser.parse_args()
    rounds, batches = (21, 4) if options.quick else (81, 8)
    case = next(case for case in CASES if case.name == "none")
    console = Console()
    began = time.monotonic()
    pin()
    rates: list[Rates] = []
    with sandbox(), answers_go_nowhere(), tempfile.TemporaryDirectory() as directory:
        flood = Flood()
        target = Path(directory) / "floors.bpf.o"
        compile_object(HERE / "bpf" / "floors.bpf.c", target)
        with BpfObject.open(target) as floors, console.status("measuring"):
            floors.load()
            key = floors.types.struct("floor_key")(group=1, generation=1)
            with floors.map("sockets") as array:
                floors.map("by_index")[33] = array
                floors.map("by_key")[key] = array
            sockets = _sockets(floors)
            flood.prepare(list(case.packets(PORT, None, 4096)))
            rates.extend(
                compare(title, case, flood, floors.program(name), sockets, rounds, batches)
                for name, title in PROGRAMS.items()
            )
            for sock in sockets:
                sock.close()
    console.print(table(rates))
    seconds = time.monotonic() - began
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "floors.json"
    path.write_text(json.dumps(figures("floors", rates, [], seconds), indent=2) + "\n")
    console.print(f"Written: {path}")


if __name__ == "__main__":
    main()
