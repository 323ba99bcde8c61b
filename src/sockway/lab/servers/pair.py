"""UDP echo and a small HTTP server in one process, as servers of a set have both.

Run it as ``python -m sockway.lab.servers.pair``.
"""

from __future__ import annotations

import asyncio
import socket

from sockway.lab.servers.echo import agent_here, echo_on
from sockway.lab.servers.identity import identity, inherited_sockets
from sockway.lab.servers.tiny import Server


async def main() -> None:
    """Serve until SIGTERM; flows end then, and what was accepted is finished."""
    loop = asyncio.get_running_loop()
    prefix = identity().encode() + b" "
    streams = []
    for sock in inherited_sockets():
        if sock.type == socket.SOCK_STREAM:
            streams.append(sock)
        else:
            sock.setblocking(False)
            echo_on(loop, sock, prefix, agent_here())
    await Server().run(streams)


if __name__ == "__main__":
    asyncio.run(main())
