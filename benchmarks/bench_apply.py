"""What changing a balancer's configuration costs: 1,000 VIPs over 50 pools of 100 backends.

    python benchmarks/bench_apply.py [--json]

In a network namespace of its own. Each kind of change is done
several times; the median is shown with the least and the most.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from sockway.balancer import Balancer, BalancerSpec
from sockway.kernel import Netns, bpffs

VIPS, POOLS, BACKENDS = 1000, 50, 100
REPEAT = 7
FIRST_BACKEND = IPv4Address("10.9.0.10")
FIRST_VIP = IPv4Address("192.0.2.0")


def configuration(pools: int, backends: int, vips: int, **last: int) -> BalancerSpec:
    """Pools of equal size; `last` sets weights in the last pool."""
    made: dict[str, Any] = {}
    for pool in range(pools):
        members: dict[str, Any] = {}
        for number in range(backends):
            address = FIRST_BACKEND + pool * backends + number
            members[f"b{pool}-{number}"] = {"address": str(address)}
        made[f"pool{pool}"] = {"backends": members}
    for name, weight in last.items():
        made[f"pool{pools - 1}"]["backends"][name.replace("_", "-")]["weight"] = weight
    listens = [
        {"listen": f"tcp://{FIRST_VIP + number}:443", "pool": f"pool{number % pools}"}
        for number in range(vips)
    ]
    return BalancerSpec.model_validate({"secret": "benchmark", "pool": made, "vip": listens})


def network() -> None:
    """All backends behind one router, as in a routed data centre."""
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as route:
        route.link("add", ifname="out", kind="veth", peer={"ifname": "away"})
        index = route.link_lookup(ifname="out")[0]
        for name in ("out", "away"):
            route.link("set", index=route.link_lookup(ifname=name)[0], state="up")
        route.addr("add", index=index, address="10.8.0.1", prefixlen=24)
        link = {"lladdr": "02:00:00:00:00:01", "ifindex": index, "state": 0x80}
        route.neigh("add", dst="10.8.0.2", **link)
        route.route("add", dst="10.9.0.0/16", gateway="10.8.0.2")


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def measure(root: Path) -> dict[str, list[float]]:
    """All changes, in milliseconds."""
    found: dict[str, list[float]] = {}
    network()
    whole = configuration(POOLS, BACKENDS, VIPS)
    balancer = Balancer.open(whole, root=root)
    found["all of it, from nothing"] = [timed(lambda: balancer.apply(whole))]
    found["nothing changes"] = [timed(lambda: balancer.apply(whole)) for _ in range(REPEAT)]
    heavier = [
        configuration(POOLS, BACKENDS, VIPS, **{f"b{POOLS - 1}_7": 100 + step})
        for step in range(1, REPEAT + 1)
    ]
    found["one backend's weight"] = [timed(lambda s=s: balancer.apply(s)) for s in heavier]
    name = f"b{POOLS - 1}-7"
    found["one backend down, and up again"] = [
        timed(lambda d=d: balancer.set_down(name, down=d)) for d in [True, False] * 4
    ]
    found["one backend drained, and restored"] = [
        timed(lambda d=d: balancer.set_drained(name, drained=d)) for d in [True, False] * 4
    ]
    found["next hops asked for again"] = [timed(balancer.refresh) for _ in range(REPEAT)]
    balancer.close()
    return found


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as name, Netns.create() as namespace:
        root = Path(name)
        bpffs.mount(root)
        try:
            found = namespace.run(lambda: measure(root))
        finally:
            bpffs.unmount(root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if as_json:
        sys.stdout.write(json.dumps({"milliseconds": found, "peak_memory_mib": peak}) + "\n")
        return
    title = f"{VIPS:,} VIPs, {POOLS} pools of {BACKENDS} backends"
    table = Table("change", "median", "least", "most", title=title)
    for what, each in found.items():
        table.add_row(what, *(f"{value:,.1f} ms" for value in (median(each), min(each), max(each))))
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    console.print(f"process: {peak:.0f} MiB at most; {os.cpu_count()} CPUs")


if __name__ == "__main__":
    main()
