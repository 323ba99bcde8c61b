"""The command `sockway`."""

from __future__ import annotations

from sockway.cli.commands import app, main

__all__ = ["app", "main"]
