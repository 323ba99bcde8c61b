from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sockway.kernel import Netns, sockdiag

pytestmark = pytest.mark.root

SO_COOKIE = 57


def _cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def _port(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


@pytest.fixture(params=["127.0.0.1", "::1"])
def server(request: pytest.FixtureRequest, netns: Netns) -> Iterator[socket.socket]:
    """A TCP listener in a namespace of its own, which this thread is in; for both families."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with netns.entered(), socket.create_server((request.param, 0), family=family) as listener:
        yield listener


def test_a_listener_is_known_by_cookie_and_inode(server: socket.socket) -> None:
    """Both are the socket's own, as the process sees them."""
    (found,) = sockdiag.listeners()
    assert (found.port, found.cookie) == (_port(server), _cookie(server))
    assert found.inode == os.fstat(server.fileno()).st_ino
    assert found.accept_queue == 0


def test_connections_wait_in_the_accept_queue(server: socket.socket) -> None:
    """Each that is not accepted counts; accepting takes it off."""
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(server.getsockname()[:2], timeout=5))
        assert sockdiag.listeners([_port(server)])[0].accept_queue == 3
        stack.enter_context(server.accept()[0])
        assert sockdiag.listeners([_port(server)])[0].accept_queue == 2


def test_connections_have_owners_and_unread_octets(server: socket.socket) -> None:
    """One that is not accepted has no inode yet; unread is what the process has not read."""
    port = _port(server)
    with socket.create_connection(server.getsockname()[:2], timeout=5) as client:
        client.sendall(b"12345")
        (waiting,) = sockdiag.established([port])
        assert (waiting.inode, waiting.peer_port) == (0, _port(client))
        with server.accept()[0] as accepted:
            (owned,) = sockdiag.established([port])
            assert owned.inode == os.fstat(accepted.fileno()).st_ino
            assert owned.unread == 5
            accepted.recv(2)
            assert sockdiag.established([port])[0].unread == 3
            client.close()
            assert len(sockdiag.established([port])) == 1  # only its peer has closed
        assert sockdiag.established([port]) == []


def test_only_the_ports_that_are_asked_for(server: socket.socket) -> None:
    """Of several listeners those with the ports; without ports all."""
    host, port = server.getsockname()[:2]
    with socket.create_server((host, 0), family=server.family) as other:
        assert {each.port for each in sockdiag.listeners()} == {port, _port(other)}
        assert [each.port for each in sockdiag.listeners([port])] == [port]
        assert sockdiag.listeners([1]) == []


def test_listeners_and_connections_in_one_question(server: socket.socket) -> None:
    """Both are told apart by their state, and only those of the families asked for come."""
    port = _port(server)
    with socket.create_connection(server.getsockname()[:2], timeout=5):
        waiting, connected = sockdiag.tcp_sockets([port])
        assert waiting == sockdiag.listeners([port])
        assert connected == sockdiag.established([port])
        assert (len(waiting), len(connected)) == (1, 1)
        assert sockdiag.tcp_sockets([port], [server.family]) == (waiting, connected)
        other = {socket.AF_INET, socket.AF_INET6} - {server.family}
        assert sockdiag.tcp_sockets([port], other) == ([], [])


def test_cookies_of_udp_sockets_lead_to_inodes(server: socket.socket) -> None:
    """Cookies of others, and other ports, find nothing."""
    with socket.socket(server.family, socket.SOCK_DGRAM) as udp:
        udp.bind((server.getsockname()[0], 0))
        mine = {os.fstat(udp.fileno()).st_ino}
        assert sockdiag.udp_inodes([_cookie(server), _cookie(udp)]) == mine
        assert sockdiag.udp_inodes([_cookie(udp)], [_port(udp)]) == mine
        assert sockdiag.udp_inodes([_cookie(udp)], [1]) == set()
        assert sockdiag.udp_inodes([1 << 60]) == sockdiag.udp_inodes([]) == set()


async def test_it_can_be_asked_beside_a_running_loop(netns: Netns) -> None:
    """pyroute2 runs a loop of its own, which must not meet this one; the namespace is kept."""
    with netns.entered(), socket.create_server(("127.0.0.1", 0)) as listener:
        assert [each.port for each in sockdiag.listeners()] == [_port(listener)]


def test_each_thread_asks_its_own_namespace(server: socket.socket) -> None:
    """A listener elsewhere is not seen."""
    del server
    found: list[list[sockdiag.Listener]] = []
    with Netns.create() as elsewhere:
        elsewhere.run(lambda: found.append(sockdiag.listeners()))
    assert found == [[]]
    assert threading.active_count() < 10
