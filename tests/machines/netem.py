"""Releases, changes of the pool and stamps on links that lose, delay and reorder, in a machine.

What netem loses TCP sends again, so nothing may fail and no connection may break. Prints JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

from sockway.lab.resets import Course, Plan, System, run
from tests.machines import release

NETEM: Final = "loss 2% delay 4ms 3ms 25% reorder 20% 50%"
PLANS: Final[dict[System, Plan]] = {
    "history": Plan(connections=40, changes=5, backends=6, churn=4, netem=NETEM),
    "stamps": Plan(connections=40, changes=10, backends=6, churn=4, shift=True, netem=NETEM),
}


def _tell(course: Course) -> None:
    sys.stderr.write(f"{course.system}: {len(course.resets)} changes, {course.total} broken\n")


def main() -> int:
    """Print what came of it; the status tells whether nothing failed."""
    loopback = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", *NETEM.split()]
    subprocess.run(loopback, check=True)
    status = release.main()
    told = subprocess.run(
        ["tc", "-s", "qdisc", "show", "dev", "lo"], check=True, capture_output=True, text=True
    ).stdout
    subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=True)
    dropped = int(told.split("dropped ")[1].split(",")[0])
    courses = {system: run(system, plan, _tell) for system, plan in PLANS.items()}
    result: dict[str, object] = {"packets that netem lost during the release": dropped}
    result |= {system: [course.opened, course.total] for system, course in courses.items()}
    sys.stdout.write(json.dumps(result) + "\n")
    whole = dropped and not any(course.total for course in courses.values())
    return status or int(not whole)


if __name__ == "__main__":
    sys.exit(main())
