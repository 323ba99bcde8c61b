"""Servers that the lab releases. Each answers with who it is: ``pid generation worker``."""

from __future__ import annotations
