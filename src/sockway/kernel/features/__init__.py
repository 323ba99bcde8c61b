"""What this machine can do of what Sockway needs, found by trying: `sockway doctor`.

Each probe makes the smallest thing that shows its feature and throws it away. Nothing that others
see is changed: sockets are bound in a namespace of their own, nothing is mounted or pinned.
"""

from __future__ import annotations

import os
from pathlib import Path

from sockway.kernel import bpffs
from sockway.kernel.features import bpf, host, network, ways
from sockway.kernel.features.feature import REPORT, Feature, Probe, unforeseen

__all__ = ["REPORT", "Feature", "Probe", "probe_all", "unforeseen"]


def probe_all(root: Path | None = None) -> list[Feature]:
    """Ask everything; what is refused is an answer, also without any rights.

    Args:
        root: the directory in bpffs that is to hold the services; $SOCKWAY_BPFFS or
            /sys/fs/bpf/sockway unless given.

    """
    if root is None:
        root = Path(os.environ.get("SOCKWAY_BPFFS") or bpffs.DEFAULT_MOUNT / "sockway")
    return [
        probe.ask()
        for probe in (*host.probes(root), *bpf.probes(), *network.probes(), *ways.probes())
    ]
