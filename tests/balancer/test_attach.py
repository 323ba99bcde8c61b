"""Attaching to interfaces: in the driver, behind it, beside others, and off again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from sockway.balancer import attach
from sockway.errors import SockwayError, StateError
from sockway.kernel import BpfObject, Netns, ObjectLayout, Program
from sockway.kernel.netdev import xdp_mode

pytestmark = pytest.mark.root


@pytest.fixture
def program(netns: Netns) -> Iterator[Program]:
    """An XDP program, in a namespace with two interfaces."""
    with netns.entered():
        with IPRoute() as route:
            route.link("add", ifname="in0", kind="veth", peer="far0")
            route.link("add", ifname="in0.7", kind="veth", peer="far1")
        with BpfObject.open(ObjectLayout("xdp_pass").source, name="xdp_pass") as made:
            made.load()
            with made.program("pass") as opened:
                yield opened


def mode(interface: str) -> str | None:
    """How XDP runs on it."""
    with IPRoute() as route:
        index = route.link_lookup(ifname=interface)[0]
        return xdp_mode(route.get_links(index)[0])


def test_native_generic_and_off(program: Program, bpffs_root: Path) -> None:
    """Each interface by its name, dots and all."""
    assert attach.attach(bpffs_root, "in0", program, "auto") == "native"
    assert attach.attach(bpffs_root, "in0.7", program, "generic") == "generic"
    assert (mode("in0"), mode("in0.7")) == ("native", "generic")
    assert attach.attached(bpffs_root) == ["in0", "in0.7"]
    assert attach.attach(bpffs_root, "in0.7", program, "auto") == "kept"
    for interface in ("in0", "in0.7", "in0"):
        attach.detach(bpffs_root, interface)
        assert mode(interface) is None
    assert attach.attached(bpffs_root) == []


def test_another_program_is_left_alone(program: Program, bpffs_root: Path) -> None:
    """With two ways out in the error."""
    (bpffs_root / "theirs").mkdir()
    attach.attach(bpffs_root / "theirs", "in0", program, "native")
    with pytest.raises(StateError, match="in0 has another XDP program") as raised:
        attach.attach(bpffs_root, "in0", program, "auto")
    assert raised.value.hint
    assert "next = PIN" in raised.value.hint
    assert attach.attached(bpffs_root) == []
    attach.detach(bpffs_root / "theirs", "in0")


def test_an_interface_that_is_not_there(program: Program, bpffs_root: Path) -> None:
    """The error names those that are."""
    with pytest.raises(SockwayError, match="no interface 'none0'") as raised:
        attach.attach(bpffs_root, "none0", program, "auto")
    assert raised.value.hint
    assert "in0" in raised.value.hint


def test_an_interface_that_went_and_came_back(program: Program, bpffs_root: Path) -> None:
    """What was pinned for the old one is in nobody's way."""
    attach.attach(bpffs_root, "in0", program, "auto")
    with IPRoute() as route:
        route.link("del", index=route.link_lookup(ifname="in0")[0])
        route.link("add", ifname="in0", kind="veth", peer="far0")
    assert mode("in0") is None
    assert attach.attach(bpffs_root, "in0", program, "auto") == "native"
    assert mode("in0") == "native"
    attach.detach(bpffs_root, "in0")
