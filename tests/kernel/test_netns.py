from __future__ import annotations

import os
import socket
import threading

import pytest

from sockway.kernel import Netns, current_netns_cookie
from tests.kernel.child import as_nobody

pytestmark = pytest.mark.root


def _interfaces() -> list[str]:
    return [name for _index, name in socket.if_nameindex()]


def _can_use_loopback() -> bool:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    return True


def test_a_new_namespace_is_empty_but_works() -> None:
    """It has a loopback interface that is up, and nothing else."""
    with Netns.create() as namespace:  # the fixture would raise its loopback interface by itself
        assert namespace.run(_interfaces) == ["lo"]
        assert namespace.run(_can_use_loopback)


def test_creating_leaves_the_caller_where_it_is() -> None:
    """This thread's namespace stays, and so do those of others."""
    before = current_netns_cookie()
    with Netns.create() as namespace:
        assert current_netns_cookie() == before
        assert namespace.cookie != before


def test_cookies_are_never_the_same() -> None:
    """Also that of a namespace that has gone is not used again."""
    seen = set()
    for _ in range(3):
        with Netns.create() as namespace:
            assert namespace.cookie == namespace.cookie
            seen.add(namespace.cookie)
    assert len(seen) == 3


def test_work_inside_returns_and_raises(netns: Netns) -> None:
    """What it returns or raises comes out; the caller never moves."""
    before = current_netns_cookie()
    assert netns.run(current_netns_cookie) == netns.cookie
    assert netns.run(lambda: None) is None

    def fail() -> None:
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        netns.run(fail)
    assert current_netns_cookie() == before


def test_entering_ends_with_the_block(netns: Netns) -> None:
    """Also by an error, and from one namespace into another; only this thread moves."""
    outside = current_netns_cookie()
    others: list[int] = []
    with netns.entered(), Netns.create() as second:
        other = threading.Thread(target=lambda: others.append(current_netns_cookie()))
        inside = current_netns_cookie()
        with second.entered():
            assert current_netns_cookie() == second.cookie
        assert current_netns_cookie() == inside == netns.cookie
        # A thread starts where its creator is.
        other.start()
        other.join()
    assert others == [inside]
    assert current_netns_cookie() == outside
    with pytest.raises(LookupError), netns.entered():
        raise LookupError
    assert current_netns_cookie() == outside


def test_a_namespace_is_found_by_path(netns: Netns) -> None:
    """A descriptor's path names it too; a path that is not there is an error."""
    with Netns.from_path(f"/proc/self/fd/{netns.fd}") as again:
        assert again.cookie == netns.cookie
    with pytest.raises(FileNotFoundError):
        Netns.from_path("/run/netns/nonesuch")


def test_closing_lets_go() -> None:
    """The descriptor is closed, once."""
    namespace = Netns.create()
    fd = namespace.fd
    namespace.close()
    namespace.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_without_rights_no_namespace(netns: Netns) -> None:
    """Neither a new one nor one that is there, and the error says what was tried."""
    assert as_nobody(Netns.create).startswith("PermissionDenied: can't create a network namespace")
    words = as_nobody(lambda: netns.run(_interfaces))
    assert words.startswith("PermissionDenied: can't enter a network namespace")
