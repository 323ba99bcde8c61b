"""Middleware for WSGI applications."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sockway.drain.flag import draining

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class WSGIDrain:
    """Make responses the last of their connection once this process's generation drains.

    Wrap the application from outside all other middleware: gunicorn drops the header from what
    applications send (WSGI, PEP 3333, leaves it to the server), and is asked by its own object
    behind `start_response` instead.

    Args:
        app: the WSGI application.

    """

    def __init__(self, app: Application) -> None:
        """Wrap `app`."""
        self.app = app

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            if not draining():
                return start_response(status, headers, *rest)
            force_close = getattr(getattr(start_response, "__self__", None), "force_close", None)
            if callable(force_close):
                force_close()
                return start_response(status, headers, *rest)
            kept = [(name, value) for name, value in headers if name.lower() != "connection"]
            return start_response(status, [*kept, ("Connection", "close")], *rest)

        return self.app(environ, start)
