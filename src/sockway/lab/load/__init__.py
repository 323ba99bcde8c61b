"""Clients of the experiments: each module is a process of its own (see ``harness``)."""

from __future__ import annotations
