"""The application of the experiments for HTTP/3 servers built on aioquic, such as hypercorn.

Under Sockway the server's connection IDs carry generation and worker; elsewhere
nothing changes.
"""

from __future__ import annotations

from sockway.lab.servers.app import app
from sockway.quic.aioquic import install_from_environment_if_present

__all__ = ["app"]

install_from_environment_if_present()
