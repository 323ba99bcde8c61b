"""A server that opens its TCP VIP at once and its UDP VIP when it is told to (a line on stdin).

It answers each connection with its generation, and ends with its TCP server. Run it by
``sockway.takeover.run``, with asyncio's loop or, if LOOP says so, uvloop's.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import sys

GENERATION = os.environ["SOCKWAY_GENERATION"]


async def _answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"{GENERATION}\n".encode())
    writer.close()


async def main() -> None:
    """Serve until cancelled."""
    tcp, udp = (socket.socket(fileno=number) for number in (3, 4))
    server = await asyncio.start_server(_answer, sock=tcp)
    print("open", flush=True)  # noqa: T201 - the test waits for the line
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=udp)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    if os.environ.get("LOOP") == "uvloop":
        importlib.import_module("uvloop").install()
    asyncio.run(main())
