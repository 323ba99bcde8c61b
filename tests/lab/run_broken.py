"""`python -m tests.lab.run_broken OUTPUT NAME...`: `sockway lab run` with those experiments."""

from __future__ import annotations

import sys

from sockway.cli import main
from sockway.lab import experiments

for name in ("sound", "refused", "wrong", "killed", "endless"):
    limit = 2.0 if name == "endless" and "--limited" in sys.argv else 60.0
    experiments.EXPERIMENTS[name] = experiments.Experiment(
        name, f"test of {name}", f"tests.lab.broken:{name}", (limit, limit)
    )
sys.argv = ["sockway", "lab", "run", *(word for word in sys.argv[1:] if word != "--limited")]
main()
