"""What the balancer must do with any packet, said a second time in plain Python.

`Model` says for a configuration and a frame what becomes of it and how it looks when it leaves; the
data plane (`bpf/balancer.bpf.c`) is held against it by generated packets. It is written from
docs/reference/balancer-packets.md, and its sections are named as that page's.
"""

from __future__ import annotations

from sockway.wire.balancer_model.configuration import (
    Address,
    Backend,
    Configuration,
    Pool,
    Vip,
)
from sockway.wire.balancer_model.model import Model, Result

__all__ = ["Address", "Backend", "Configuration", "Model", "Pool", "Result", "Vip"]
