"""Granian on a listening socket that its parent passed on.

Granian's own command line opens its socket itself. Its server object asks one method
for that, so a subclass that takes the descriptor instead is all there is to it.

``python -m sockway.lab.servers.granian_fd FD APPLICATION``
"""

from __future__ import annotations

import sys

from granian._granian import SocketHolder
from granian.constants import Interfaces
from granian.server import MPServer

BACKLOG = 4096


class InheritedServer(MPServer):
    """Granian with one worker process on descriptor *fd*."""

    def __init__(self, fd: int, target: str) -> None:
        """Serve the ASGI application *target* (``module:name``)."""
        super().__init__(target, interface=Interfaces.ASGI, workers=1, log_access=False)
        self._fd = fd

    def _init_shared_socket(self) -> None:
        # Granian's stubs know neither the holder's arguments nor that these may be set.
        vars(self).update(
            _ssp=None,
            _sso=None,
            _shd=SocketHolder(self._fd, False, BACKLOG),  # type: ignore[call-arg]
            _sfd=self._fd,
        )


if __name__ == "__main__":
    InheritedServer(int(sys.argv[1]), sys.argv[2]).serve()
