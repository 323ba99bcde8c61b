"""Two experiments of the lab, as `make demo` runs them, in a machine; and what they must show.

The baselines lose what they lose. Releases by Sockway, and connections with stamps, lose nothing:
the command itself fails only if an experiment does not come to its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

MUST_BE_ZERO: Final = {
    "release": ("sockway", ("set_udp_failed", "set_tcp_failed")),
    "resets": ("stamps", ("resets",)),
}


def main() -> int:
    """Run them; the status tells whether nothing was lost that must not be."""
    output = Path(sys.argv[1])
    command = [sys.executable, "-m", "sockway", "lab", "run", *MUST_BE_ZERO, "--quick"]
    status = subprocess.run([*command, "--output", str(output)], check=False).returncode
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))["experiments"]
    for experiment, (system, names) in MUST_BE_ZERO.items():
        metrics = results[experiment]["systems"].get(system, {})
        for name in names:
            value = metrics.get(name, {}).get("value")
            sys.stdout.write(f"{experiment}, {system}: {name} {value}\n")
            if value != 0:
                status = status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
