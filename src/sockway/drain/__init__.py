"""Drain helpers for the server's side: keep-alive clients leave by themselves.

Steering new connections away is not enough for those that stay open between requests: a server
that closes an idle one may cross a request that is on its way. So, from the moment that its
generation drains, an application answers each request with `Connection: close` (RFC 9112, section
9.6), and the client comes back on a new connection, which meets the new generation.

    app = ASGIDrain(app)        WSGI: app = WSGIDrain(app)

The generation's state is one octet of a file, mapped into memory: asking costs a load. Outside
`sockway serve` nothing ever drains. HTTP/2 and HTTP/3 know no such header (RFC 9113, section
8.2.2): there a GOAWAY says the same, and `ASGIDrain` has hypercorn send it.
"""

from sockway.drain.asgi import ASGIDrain
from sockway.drain.flag import draining
from sockway.drain.wsgi import WSGIDrain

__all__ = ["ASGIDrain", "WSGIDrain", "draining"]
