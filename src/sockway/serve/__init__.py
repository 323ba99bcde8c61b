"""Running servers and releasing them: the supervisor behind `sockway serve`."""

from __future__ import annotations

from sockway.serve.spec import ServeSpec
from sockway.serve.supervisor import Supervisor

__all__ = ["ServeSpec", "Supervisor"]
