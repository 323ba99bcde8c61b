"""Lasting connections while the fleet changes, in a machine: the lab's experiment, small.

With the ring alone some must break, else nothing was tried; with slot history and with stamps none
may. Prints JSON: connections and how many broke, by what the balancer knows.
"""

from __future__ import annotations

import json
import sys
from typing import Final

from sockway.lab.resets import Course, Plan, System, run

PLANS: Final[dict[System, Plan]] = {
    "ring": Plan(connections=60, changes=4, backends=6, churn=4),
    # Debian's kernels have IPVS. Its connections survive changes of backends, not of balancers.
    "ipvs": Plan(connections=60, changes=10, backends=6, churn=4, shift=True),
    "history": Plan(connections=60, changes=6, backends=6, churn=4),
    # Balancers change too, at each fifth change.
    "stamps": Plan(connections=60, changes=10, backends=6, churn=4, shift=True),
}


def _tell(course: Course) -> None:
    sys.stderr.write(f"{course.system}: {len(course.resets)} changes, {course.total} broken\n")


def main() -> int:
    """Print what came of it; the status tells whether it was as it must be."""
    courses = {system: run(system, plan, _tell) for system, plan in PLANS.items()}
    result = {
        system: {
            "connections": course.opened,
            "changes": len(course.resets),
            "broken": course.total,
        }
        for system, course in courses.items()
    }
    sys.stdout.write(json.dumps(result) + "\n")
    kept = all(courses[system].total == 0 for system in ("history", "stamps"))
    return 0 if kept and courses["ring"].total else 1


if __name__ == "__main__":
    sys.exit(main())
