"""A supervisor that kills itself right after a step: `crash_child.py SPEC STEP GENERATION`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from sockway.serve.spec import ServeSpec
from sockway.serve.supervisor import Supervisor


def main() -> None:
    """Serve, and die at the step."""
    spec, step, generation = sys.argv[1:]

    def tell(event: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
        if (event["step"], str(event.get("generation"))) == (step, generation):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.exit(asyncio.run(Supervisor(ServeSpec.model_validate(json.loads(spec)), tell=tell).run()))


if __name__ == "__main__":
    main()
