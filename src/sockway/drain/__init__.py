"""For applications: know that this process's generation drains, and let clients leave in time.

Steering packets moves new connections at once, but a keep-alive client stays with the old process
until that closes the connection, perhaps under a request on its way. So once the generation
drains, each response says that it is the connection's last:

    app = ASGIDrain(app)        # or WSGIDrain(app)

HTTP/1 responses carry `Connection: close` (RFC 9112, section 9.6). Under hypercorn, connections of
HTTP/2 and HTTP/3 get a GOAWAY. Outside `sockway serve` all of this does nothing.
"""

from __future__ import annotations

from sockway.drain.asgi import ASGIDrain
from sockway.drain.flag import draining
from sockway.drain.wsgi import WSGIDrain

__all__ = ["ASGIDrain", "WSGIDrain", "draining"]
