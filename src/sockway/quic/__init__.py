"""Connection IDs for QUIC servers that run as Sockway's workers.

Any QUIC stack that lets its server choose connection IDs can take them from `ConnectionIds`:

    ids = ConnectionIds.from_environment()
    connection_id = ids.mint()

Packets that carry such an ID find this worker by it, whatever is published later and whatever
address the client moves to. Where balancers read IDs, the ID names the server, too, as the
service's configuration (`quic_lb`) says. `sockway.quic.aioquic` does so for aioquic and for what is
built on it, such as hypercorn; `python -m sockway.quic COMMAND` does it for an unchanged program.
"""

from __future__ import annotations

from sockway.quic.ids import ConnectionIds, is_worker
from sockway.quic.server import ServerIds

__all__ = ["ConnectionIds", "ServerIds", "is_worker"]
