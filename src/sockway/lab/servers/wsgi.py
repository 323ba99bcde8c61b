"""The WSGI application of the experiments, for gunicorn: it answers who it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sockway.drain import WSGIDrain
from sockway.lab.servers.identity import identity


def plain_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer every path with ``pid generation worker``."""
    del environ
    body = identity().encode()
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


app = WSGIDrain(plain_app)
