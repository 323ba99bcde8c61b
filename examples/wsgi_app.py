"""A WSGI application for gunicorn: `/` tells who answers.

Wrapped in `WSGIDrain`, so keep-alive clients leave a draining generation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from sockway.drain import WSGIDrain


def plain(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a request (PEP 3333)."""
    del environ
    body = json.dumps(
        {
            "pid": os.getpid(),
            "generation": int(os.environ.get("SOCKWAY_GENERATION", "0")),
            "worker": int(os.environ.get("SOCKWAY_WORKER", "0")),
        }
    ).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


app = WSGIDrain(plain)
