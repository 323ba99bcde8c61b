"""Socket takeover: the way to release a server that Sockway's router replaces.

After "Zero Downtime Release" (SIGCOMM 2020): the new process asks the old one for its listening
sockets over a UNIX socket (SCM_RIGHTS), serves on the very same ones, and the old one drains. No
socket is closed, so TCP loses nothing. A UDP socket has one receive buffer whoever reads it, so
from then on the new process reads all packets, and forwards those of the old one's flows to an
address of its own that the old one listens on. That is routing in user space: each such packet is
received twice and sent once more.

`sockway serve --takeover` runs it; the lab holds the router against it. It is made as good as it
can be:

* A process asks for the sockets when it has loaded its program, and takes over reading when the
  server on it is ready. Meanwhile the old one serves. A new one that dies before leaves nothing
  behind; if it dies while the old one still drains, the old one goes on serving.
* A connection ID names generation and worker (`sockway.wire.host_id`), and is decoded once, then
  remembered. What is known by address only (plain UDP) or by a client-chosen ID (the first
  flight of a QUIC handshake) is handed over as a table, at the moment of the handover.
* Workers have sockets of their own (SO_REUSEPORT), each handed to the worker of the same number, so
  the kernel's choice among them never changes.
* Nothing is read and thrown away: packets wait in the socket's buffer during the handover.

=============  ===================================================================
`handover`     what the two processes say to each other, and the descriptors
`forward`      packets for another process: the envelope, the inbox
`routing`      whose a packet is
`agent`        one process: all of that together, on an event loop
`asyncio_side` any asyncio server on it
`starting`     imports and sockets, before there is a server
`run`          starts a server that takes over: ``python -m sockway.takeover.run``
=============  ===================================================================
"""

from __future__ import annotations
