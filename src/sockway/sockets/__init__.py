"""The sockets layer: services, generations, and the router's state behind them."""

from __future__ import annotations
