"""The balancer: packets for a VIP go to one backend of its pool, in XDP.

`Balancer` is the way in: it loads and pins the data plane, applies configurations to it, and tells
what it does. Everything that counts is in the kernel: a process that ends, for whatever reason,
leaves the forwarding as it is, and the next one goes on from there.
"""

from __future__ import annotations

from sockway.balancer.balancer import BackendStatus, Balancer, remove_balancer
from sockway.balancer.capture import Capture, Captured, PcapngFile
from sockway.balancer.config import read, read_file
from sockway.balancer.counters import BackendCount, BalancerCounters
from sockway.balancer.explain import Explanation, frame_of
from sockway.balancer.plan import Change
from sockway.balancer.spec import BackendSpec, BalancerSpec, LimitSpec, PoolSpec, VipSpec

__all__ = [
    "BackendCount",
    "BackendSpec",
    "BackendStatus",
    "Balancer",
    "BalancerCounters",
    "BalancerSpec",
    "Capture",
    "Captured",
    "Change",
    "Explanation",
    "LimitSpec",
    "PcapngFile",
    "PoolSpec",
    "VipSpec",
    "frame_of",
    "read",
    "read_file",
    "remove_balancer",
]
