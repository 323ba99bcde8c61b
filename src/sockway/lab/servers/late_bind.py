"""Start a server module that binds its port itself, with SO_REUSEPORT, once it is loaded.

Baseline of the experiments: what people do without Sockway is to start the new
process beside the old one, both bound to the port. A server that is handed a bound
UDP socket gets datagrams from that moment on, long before it can read them; a fair
baseline binds as late as it can, so this imports the server first, binds then, and
passes the sockets as descriptors 3 and up, as Sockway does. A TCP socket is left to
the server to listen on.

``LAB_BIND='URL...' python -m sockway.lab.servers.late_bind MODULE [ARGUMENT...]``
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import runpy
import signal
import socket
import sys
from urllib.parse import urlsplit

from sockway.lab.servers.identity import FIRST_FD

PR_SET_PDEATHSIG = 1


def bind(url: str) -> socket.socket:
    """A socket bound to *url* (``tcp://[::]:8080``) with SO_REUSEPORT, not listening."""
    parts = urlsplit(url)
    host, port = parts.hostname or "::", parts.port or 0
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if parts.scheme == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((host, port))
    return sock


def main() -> None:
    """Import the module, bind, and run the module."""
    module, *arguments = sys.argv[1:]
    # Unlike Sockway's, these workers are no use without the experiment they belong to.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    importlib.import_module(module)
    # The application is the better part of what there is to load.
    for argument in arguments:
        if argument.startswith("sockway.") and ":" in argument:
            importlib.import_module(argument.partition(":")[0])
    urls = os.environ["LAB_BIND"].split()
    # Descriptors out of the way first, so that none is where another shall be.
    high = []
    for url in urls:
        with bind(url) as sock:
            high.append(fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 100))
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, FIRST_FD + number, inheritable=True)
        os.close(descriptor)
    os.environ |= {"LISTEN_FDS": str(len(urls)), "LISTEN_PID": str(os.getpid())}
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
