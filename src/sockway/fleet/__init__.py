"""A fleet's desired state: so far the registry of server IDs.

`Registry` gives IDs to backends, holds who knows and who tells them, and enforces the order:
balancers know an ID before a backend tells it, and forget it after nobody does. Its records are in
a `Store`; `SqliteStore` is the one for a single machine.
"""

from __future__ import annotations

from sockway.fleet.applying import bring, learn, read_resolved, report
from sockway.fleet.entries import Entry, Facts, Report, Revision, Rules
from sockway.fleet.registry import Registry, default_path
from sockway.fleet.resolving import read_placed, resolve
from sockway.fleet.rules import NotKnownYetError
from sockway.fleet.sqlite import SqliteStore
from sockway.fleet.store import Store, Transaction, View

__all__ = [
    "Entry",
    "Facts",
    "NotKnownYetError",
    "Registry",
    "Report",
    "Revision",
    "Rules",
    "SqliteStore",
    "Store",
    "Transaction",
    "View",
    "bring",
    "default_path",
    "learn",
    "read_placed",
    "read_resolved",
    "report",
    "resolve",
]
