"""The balancer: packets for a VIP go to one backend of its pool, in XDP.

`Balancer` is the way in: it loads and pins the data plane, applies configurations to it, and tells
what it does. Everything that counts is in the kernel: a process that ends, for whatever reason,
leaves the forwarding as it is, and the next one goes on from there.
"""

from __future__ import annotations
