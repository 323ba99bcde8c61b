"""What the kernel's network stack does, tried in a namespace that nobody else sees."""

from __future__ import annotations

import errno
import socket
from typing import Final

from sockway.kernel import sockdiag
from sockway.kernel.features.feature import Probe, missing
from sockway.kernel.netdev import xdp_features
from sockway.kernel.netns import Netns, current_netns_cookie

_IPV6_FREEBIND: Final = 78
_SO_COOKIE: Final = 57
_PORT: Final = 8080


def probes() -> list[Probe]:
    """All questions about the network stack."""
    return [
        Probe("namespace cookie", "telling services of one name in two namespaces apart",
              "Linux 5.14 or later", _cookie, required=True),
        Probe("sock_diag", "knowing when a generation has drained",
              "a kernel with CONFIG_INET_DIAG, CONFIG_INET_TCP_DIAG and CONFIG_INET_UDP_DIAG",
              _sock_diag, required=True),
        Probe("network namespaces", "`sockway demo` and the tests", "a kernel with CONFIG_NET_NS",
              _namespaces),
        Probe("XDP features", "knowing what devices can do", "", _xdp_features,
              instead="a frame is sent to each device to try it"),
        Probe("bind conflicts", "one process taking another's address is an error",
              "a kernel without the fault in its cache of bound addresses; until then do not"
              " serve a wildcard and a single address on one port", _bind_conflicts),
    ]  # fmt: skip


def _cookie() -> str:
    return f"{current_netns_cookie()}"


def _sock_diag() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        cookie = int.from_bytes(server.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")
        port = server.getsockname()[1]
        if cookie not in {listener.cookie for listener in sockdiag.listeners([port])}:
            raise missing("a listener of this process is not in what it tells of TCP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        cookie = int.from_bytes(udp.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), "little")
        if not sockdiag.udp_inodes([cookie], [udp.getsockname()[1]]):
            raise missing("a socket of this process is not in what it tells of UDP")
    return "tells of TCP and UDP"


def _namespaces() -> str:
    with Netns.create() as namespace:
        namespace.run(lambda: None)
    return "creatable"


def _xdp_features() -> str:
    if xdp_features() is None:
        raise missing("the kernel does not tell")
    return "told"


def _bind_conflicts() -> str:
    with Netns.create() as namespace:
        if namespace.run(_is_third_bind_let_through):
            raise missing("[::] can be bound beside [::1] of another that does not share its port")
    return "found also where the port's sockets are mixed"


def _is_third_bind_let_through() -> bool:
    """Whether the kernel overlooks a conflict because of what it keeps of the last bind.

    The first socket shares its port with nobody, so a wildcard on the same port is a conflict.
    The second one, at another address, does share; a kernel with the fault then remembers of the
    port only this, and lets the third one in without a look at the first.
    """
    with _tcp() as alone, _tcp(shared=True) as sharing, _tcp(shared=True) as wildcard:
        alone.bind(("::1", _PORT))
        # The namespace has no such address; that does not matter to the conflict.
        sharing.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        sharing.bind(("::2", _PORT))
        try:
            wildcard.bind(("::", _PORT))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        return True


def _tcp(*, shared: bool = False) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
    return sock
