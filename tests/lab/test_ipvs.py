"""IPVS as a baseline: it runs where the kernel has it, and elsewhere the reason is told."""

from __future__ import annotations

import pytest

from sockway.kernel import Netns
from sockway.lab.ipvs import lacking

pytestmark = pytest.mark.root


def test_the_reason_is_the_kernels(netns: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the program that is missing, or says that this kernel has none."""

    def known() -> bool:
        with open("/proc/thread-self/net/ip_vs", encoding="ascii") as table:  # noqa: PTH123
            return table.readline().startswith("IP Virtual Server")

    reason = lacking()
    try:
        has = netns.run(known)
    except FileNotFoundError:
        has = False
    assert has is not bool(reason)
    monkeypatch.setattr("sockway.lab.ipvs._PATH", "/nowhere")
    assert lacking() == "ipvsadm is not installed (Debian: ipvsadm)"
