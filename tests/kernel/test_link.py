from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from sockway.errors import FeatureError, KernelError, NotFoundError
from sockway.kernel import BpfObject, Link, Netns, XdpMode
from sockway.kernel.features.host import cgroup2_mount
from tests.kernel.child import in_child

pytestmark = pytest.mark.root

LOOPBACK = 1


@pytest.fixture
def inside(netns: Netns) -> Iterator[Netns]:
    """This thread is inside a fresh network namespace."""
    with netns.entered():
        yield netns


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup (version 2) of the test's own."""
    mount = cgroup2_mount()
    if mount is None:
        pytest.skip("no cgroup v2 is mounted")
    path = mount / f"sockway-test-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def test_xdp_comes_changes_and_goes(loaded: BpfObject, inside: Netns) -> None:
    """Packets pass while counted, stop at the exchange, and pass again after the detachment."""
    assert inside.fd >= 0
    with (
        loaded.program("count") as count,
        loaded.program("drop") as drop,
        loaded.map("cells") as cells,
    ):
        memory = cells.mmap(loaded.types.struct("cell") * 4)
        memory[1].add = 1
        with count.attach_xdp(LOOPBACK, XdpMode.GENERIC) as link:
            assert _arrives()
            assert memory[0].packets == 1
            link.update(drop)
            assert not _arrives()
            link.update(count)
            assert _arrives()
            link.detach()
            assert _arrives()
            assert memory[0].packets == 2


def test_closing_the_last_descriptor_detaches(loaded: BpfObject, inside: Netns) -> None:
    """Nothing is left of a link that was neither pinned nor kept."""
    assert inside.fd >= 0
    with loaded.program("drop") as drop:
        with drop.attach_xdp(LOOPBACK, XdpMode.GENERIC):
            assert not _arrives()
        assert _arrives()


def test_a_pinned_link_outlives_its_descriptor(
    loaded: BpfObject, inside: Netns, bpffs_root: Path
) -> None:
    """It is found through its pin, and goes with it."""
    assert inside.fd >= 0
    with loaded.program("drop") as drop:
        with drop.attach_xdp(LOOPBACK, XdpMode.GENERIC) as link:
            link.pin(bpffs_root / "link")
        assert not _arrives()
        with Link.from_pin(bpffs_root / "link"), loaded.program("count") as count:
            with Link.from_pin(bpffs_root / "link") as again:
                again.update(count)
            assert _arrives()
        (bpffs_root / "link").unlink()
    with pytest.raises(NotFoundError, match="link"):
        Link.from_pin(bpffs_root / "link")


def test_native_mode_is_the_drivers_choice(loaded: BpfObject, inside: Netns) -> None:
    """A veth runs XDP by itself; the loopback interface does not, and the error has the way out."""
    assert inside.fd >= 0
    with IPRoute() as route:
        route.link("add", ifname="left", kind="veth", peer="right")
        (index,) = route.link_lookup(ifname="left")
    with loaded.program("drop") as drop:
        drop.attach_xdp(index).close()
        with pytest.raises(FeatureError, match="native mode") as caught:
            drop.attach_xdp(LOOPBACK)
        assert "generic" in str(caught.value.hint)


def test_an_interface_has_one_link(loaded: BpfObject, inside: Netns) -> None:
    """A second one is refused, and so is an interface that is not there."""
    assert inside.fd >= 0
    with loaded.program("drop") as drop, drop.attach_xdp(LOOPBACK, XdpMode.GENERIC):
        with pytest.raises(KernelError, match="EBUSY"):
            drop.attach_xdp(LOOPBACK, XdpMode.GENERIC)
        with pytest.raises(KernelError, match="interface 4711"):
            drop.attach_xdp(4711, XdpMode.GENERIC)


def test_a_program_of_another_type_is_no_exchange(loaded: BpfObject, inside: Netns) -> None:
    """The link goes on with the program it had."""
    assert inside.fd >= 0
    with (
        loaded.program("drop") as drop,
        loaded.program("refuse") as refuse,
        drop.attach_xdp(LOOPBACK, XdpMode.GENERIC) as link,
    ):
        with pytest.raises(KernelError, match="exchange"):
            link.update(refuse)
        assert not _arrives()


def test_sock_ops_see_the_connections_of_a_cgroup(loaded: BpfObject, cgroup: Path) -> None:
    """Those of processes inside, while it is attached; no others."""
    with (
        loaded.program("on_connect") as program,
        loaded.map("cells") as cells,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        memory = cells.mmap(loaded.types.struct("cell") * 4)
        address = server.getsockname()

        def connect() -> str:
            (cgroup / "cgroup.procs").write_text("0", encoding="ascii")
            socket.create_connection(address, timeout=5).close()
            return "connected"

        fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with program.attach_cgroup(fd) as link:
                assert in_child(connect) == "connected"
                assert memory[2].packets == 1
                socket.create_connection(address, timeout=5).close()
                assert memory[2].packets == 1
                link.detach()
                assert in_child(connect) == "connected"
                assert memory[2].packets == 1
        finally:
            os.close(fd)


def test_only_cgroups_take_sock_ops(loaded: BpfObject, tmp_path: Path) -> None:
    """Another directory is refused, with what it must be."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with (
            loaded.program("on_connect") as program,
            pytest.raises(KernelError, match="version 2"),
        ):
            program.attach_cgroup(fd)
    finally:
        os.close(fd)


def _arrives() -> bool:
    """Whether a datagram over the loopback interface comes through."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.2)
        client.sendto(b"hello", server.getsockname())
        try:
            return server.recv(16) == b"hello"
        except TimeoutError:
            return False
