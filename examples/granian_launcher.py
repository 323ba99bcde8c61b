"""Granian on a listening socket that its parent passes on.

    sockway serve --listen 'tcp://[::]:8080' -- python examples/granian_launcher.py {fd} app:app

Granian's own command makes its socket itself. Its server object has one method for that, a private
one: here it takes the descriptor instead. Tried with granian 2.8.
"""

from __future__ import annotations

import sys

from granian._granian import SocketHolder
from granian.constants import Interfaces
from granian.server import MPServer


class InheritedServer(MPServer):
    """Granian with one worker process on descriptor `fd`."""

    def __init__(self, fd: int, target: str) -> None:
        """Serve the ASGI application `target` (MODULE:NAME)."""
        super().__init__(target, interface=Interfaces.ASGI, workers=1, log_access=False)
        self._fd = fd

    def _init_shared_socket(self) -> None:
        # Through vars(): granian's stubs know none of these as settable.
        vars(self).update(
            _ssp=None,
            _sso=None,
            _shd=SocketHolder(self._fd, False, self.backlog),  # type: ignore[call-arg]
            _sfd=self._fd,
        )


if __name__ == "__main__":
    InheritedServer(int(sys.argv[1]), sys.argv[2]).serve()
