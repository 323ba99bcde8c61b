"""Filters of clsact: what kernels before 6.6 have instead of links for tc programs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute

from sockway.errors import KernelError
from sockway.kernel import Netns, Program, clsact
from sockway.kernel.ffi import check, ffi, lib

pytestmark = pytest.mark.root

LOOPBACK = 1
SCHED_CLS = 3
DROP, NEXT = 2, -1


def verdict(number: int) -> Program:
    """Load a tc program that says the same of each packet."""
    code = b"\xb7\0\0\0" + number.to_bytes(4, "little", signed=True) + b"\x95" + bytes(7)
    fd = lib.bpf_prog_load(SCHED_CLS, b"verdict", b"GPL", code, 2, ffi.NULL)
    return Program(check(fd, "load a program of two instructions"))


@pytest.fixture(autouse=True)
def inside(netns: Netns) -> Iterator[None]:
    """This thread is inside a fresh network namespace."""
    with netns.entered():
        yield


def arrives() -> bool:
    """Whether a datagram on the loopback arrives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind(("127.0.0.1", 0))
        there.settimeout(0.5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
            here.sendto(b"x", there.getsockname())
        try:
            return there.recv(10) == b"x"
        except TimeoutError:
            return False


def qdiscs() -> list[str]:
    """Kinds of the loopback's queueing disciplines."""
    with IPRoute() as route:
        return [q.get_attr("TCA_KIND") for q in route.get_qdiscs(index=LOOPBACK)]


@pytest.mark.parametrize("incoming", [True, False])
def test_a_filter_comes_changes_and_goes(*, incoming: bool) -> None:
    """Packets pass or are dropped by the program that is there; then nothing is left."""
    before = qdiscs()
    assert not clsact.is_attached(LOOPBACK, "one", incoming=incoming)
    with verdict(DROP) as drop, verdict(NEXT) as go_on:
        assert clsact.attach(LOOPBACK, drop, "one", incoming=incoming)
        assert clsact.is_attached(LOOPBACK, "one", incoming=incoming)
        assert not clsact.is_attached(LOOPBACK, "one", incoming=not incoming)
        assert not arrives()
        assert not clsact.attach(LOOPBACK, go_on, "one", incoming=incoming)
        assert arrives()
        clsact.attach(LOOPBACK, drop, "one", incoming=incoming)
    assert not arrives()  # a filter needs no process
    assert clsact.detach(LOOPBACK, "one", incoming=incoming, with_clsact=True)
    assert arrives()
    assert not clsact.detach(LOOPBACK, "one", incoming=incoming)
    assert qdiscs() == before


def test_filters_of_others_stay() -> None:
    """Each name has its own, and one that says "go on" lets the next one look."""
    with verdict(DROP) as drop, verdict(NEXT) as go_on:
        assert clsact.attach(LOOPBACK, go_on, "ours")
        clsact.attach(LOOPBACK, drop, "theirs")
    assert not arrives()
    assert clsact.detach(LOOPBACK, "ours", with_clsact=True)
    assert not arrives()
    assert "clsact" in qdiscs()
    assert clsact.detach(LOOPBACK, "theirs")
    assert arrives()
    assert "clsact" in qdiscs()  # only who made it takes it away


def test_a_discipline_of_an_administrator() -> None:
    """The older `ingress` has room for what is received; for what is sent that is an error."""
    with IPRoute() as route:
        route.tc("add", "ingress", LOOPBACK)
    with verdict(DROP) as drop:
        assert not clsact.attach(LOOPBACK, drop, "one")
        assert not arrives()
        assert clsact.detach(LOOPBACK, "one")
        assert arrives()
        with pytest.raises(KernelError, match="discipline `ingress`") as refused:
            clsact.attach(LOOPBACK, drop, "one", incoming=False)
    assert "tc qdisc add dev DEVICE clsact" in str(refused.value.hint)
    assert arrives()
    assert "ingress" in qdiscs()


def test_inside_an_event_loop() -> None:
    """The agent's health checks come and go while its own loop runs."""

    async def work() -> bool:
        with verdict(DROP) as drop:
            clsact.attach(LOOPBACK, drop, "one", incoming=False)
        there = clsact.is_attached(LOOPBACK, "one", incoming=False)
        return there and clsact.detach(LOOPBACK, "one", incoming=False, with_clsact=True)

    assert asyncio.run(work())


def test_no_such_interface() -> None:
    """Attaching is one clear error, and nothing is there to detach."""
    with verdict(NEXT) as program, pytest.raises(KernelError, match="attach one to interface 999"):
        clsact.attach(999, program, "one")
    assert not clsact.detach(999, "one")
