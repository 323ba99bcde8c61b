"""GOAWAY for hypercorn's HTTP/2 and HTTP/3 connections.

hypercorn itself sends GOAWAY only after it was told to stop, and by then it refuses requests that
are on their way. No part of ASGI reaches a connection, so this goes from the `send` that hypercorn
gave the application to the protocol object behind it. Those are private matters of hypercorn:
whatever is not as expected is left alone, and the connection ends at SIGTERM as without this.
"""

from __future__ import annotations

import weakref
from typing import Any

_told: weakref.WeakSet[Any] = weakref.WeakSet()
"""HTTP/3 connections that got their GOAWAY."""


async def go_away(send: Any) -> None:
    """Send a GOAWAY on the connection that `send` writes to, if it is hypercorn's.

    HTTP/2 (RFC 9113, section 6.8): once no stream is open, because hypercorn's HTTP/2 state takes
    the connection for closed after it. HTTP/3 (RFC 9114, section 5.2): at once.
    """
    protocol = getattr(getattr(getattr(send, "__self__", None), "send", None), "__self__", None)
    kind = type(protocol)
    if not kind.__module__.startswith("hypercorn.protocol."):
        return
    if kind.__name__ == "H2Protocol":
        await _h2(protocol)
    elif kind.__name__ == "H3Protocol":
        await _h3(protocol, send.__self__.stream_id)


async def _h2(protocol: Any) -> None:
    connection = getattr(protocol, "connection", None)
    flush = getattr(protocol, "_flush", None)
    # `idle` goes by streams that hypercorn has not forgotten yet.
    if connection is None or flush is None or not getattr(protocol, "idle", False):
        return
    connection.close_connection()
    await flush()


async def _h3(protocol: Any, served: int) -> None:
    h3 = getattr(protocol, "connection", None)
    quic = getattr(h3, "_quic", None)
    control = getattr(h3, "_local_control_stream_id", None)
    if quic is None or control is None or h3 in _told:
        return
    # aioquic is there: the object is its.
    from aioquic.buffer import encode_uint_var  # noqa: PLC0415
    from aioquic.h3.connection import FrameType, encode_frame  # noqa: PLC0415

    _told.add(h3)
    # The first request stream that is not going to be served: those that are open will be.
    requests = [stream for stream in getattr(h3, "_stream", {}) if stream % 4 == 0]
    first_refused = max(served, *requests) + 4
    quic.send_stream_data(control, encode_frame(FrameType.GOAWAY, encode_uint_var(first_refused)))
    await protocol.send()
