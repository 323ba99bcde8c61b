"""One experiment, as a process of its own: ``python -m sockway.lab.one``.

The task comes as JSON on standard input; what was found, or why it was not, goes to the file that
the task names. SIGTERM ends it as an error does: what it has made is taken away.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from sockway.errors import SockwayError
from sockway.lab.experiments import Setting, shown, work_of
from sockway.lab.sandbox import end_with_parent, raise_file_limit


def main() -> int:
    """Do it; status 0 if it was done."""
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    task = json.load(sys.stdin)
    raise_file_limit()
    told: dict[str, Any]
    try:
        with shown() as progress:
            setting = Setting(Path(task["output"]), task["quick"], task["seed"], progress)
            findings = work_of(task["entry"])(setting)
        told = {"findings": findings.model_dump()}
    except SockwayError as error:
        told = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {error}"}
    Path(task["answer"]).write_text(json.dumps(told), encoding="utf-8")
    return 0 if "findings" in told else 1


if __name__ == "__main__":
    sys.exit(main())
