"""The server programs of the experiments, and what it takes to run each of them.

A command holds the placeholders of ``sockway serve``: ``{fd}`` (or ``{fd:NAME}``) is
the descriptor of a listening socket. The baseline fills in the same ones.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from sockway.errors import ConfigError


@dataclass(frozen=True)
class Program:
    """One server program."""

    name: str
    listen: tuple[str, ...]  # as for ``sockway serve --listen``
    command: tuple[str, ...]
    ready: str = "tcp"  # as for ``sockway serve --ready``
    module: str = ""  # for the baseline: what is run after binding, with its arguments:
    arguments: tuple[str, ...] = ()
    up: str = ""  # a regular expression for the line it prints when it is up
    env: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()  # further ones for ``sockway serve``


PYTHON = sys.executable
WEB = "tcp://[::]:8080"


def tiny() -> Program:
    """The lab's own small HTTP server."""
    return Program(
        name="tiny",
        listen=(WEB,),
        command=(PYTHON, "-m", "sockway.lab.servers.tiny"),
        ready="notify",
        module="sockway.lab.servers.tiny",
        up="tiny ready",
    )


def echo() -> Program:
    """The lab's own UDP echo."""
    return Program(
        name="echo",
        listen=("udp://[::]:4433?flow=tuple",),
        command=(PYTHON, "-m", "sockway.lab.servers.echo"),
        ready="notify",
        module="sockway.lab.servers.echo",
        up="echo ready",
    )


def pair(number: int) -> Program:
    """The lab's own UDP echo and HTTP server in one, at an address of its own."""
    host = f"127.0.0.{number}"
    return Program(
        name=f"server{number}",
        listen=(f"tcp://{host}:8080", f"udp://{host}:4433?flow=tuple"),
        command=(PYTHON, "-m", "sockway.lab.servers.pair"),
        ready="notify",
        module="sockway.lab.servers.pair",
        up="tiny ready",
    )


def accepting(number: int) -> Program:
    """The lab's own UDP echo with one accepting process, at the address of a `pair`."""
    return Program(
        name=f"server{number}",
        listen=(f"udp://127.0.0.{number}:4433",),
        command=(),
        module="sockway.lab.servers.accepting",
        up="accepting loaded",
    )


def uvicorn() -> Program:
    """The ASGI server uvicorn, HTTP/1.1."""
    arguments = ("sockway.lab.servers.app:app", "--no-access-log", "--fd")
    return Program(
        name="uvicorn",
        listen=(WEB,),
        command=(PYTHON, "-m", "uvicorn", *arguments, "{fd}"),
        ready="http:/",
        module="uvicorn",
        arguments=(*arguments, "3"),
        up="Uvicorn running",
    )


def hypercorn() -> Program:
    """The ASGI server hypercorn, HTTP/1.1."""
    arguments = ("sockway.lab.servers.app:app", "--workers", "0", "--bind")
    return Program(
        name="hypercorn",
        listen=(WEB,),
        command=(PYTHON, "-m", "hypercorn", *arguments, "fd://{fd}"),
        ready="http:/",
        module="hypercorn",
        arguments=(*arguments, "fd://3"),
        up="Running on",
    )


def http3(certificate: Path, key: Path) -> Program:
    """The ASGI server hypercorn, HTTP/3 on UDP beside HTTP/1.1 and 2 on TCP, one port."""
    arguments = (
        "sockway.lab.servers.h3:app",
        *("--workers", "0", "--certfile", str(certificate), "--keyfile", str(key)),
        *("--graceful-timeout", "1"),
    )
    return Program(
        name="hypercorn-h3",
        listen=(
            "tcp://[::]:8443?name=https",
            "udp://[::]:8443?flow=quic&ids=sockway&name=h3",
        ),
        command=(
            *(PYTHON, "-m", "hypercorn", *arguments),
            *("--bind", "fd://{fd:https}", "--quic-bind", "fd://{fd:h3}"),
        ),
        ready="log:Running on .*QUIC",
        module="hypercorn",
        arguments=(*arguments, "--bind", "fd://3", "--quic-bind", "fd://4"),
        up=r"Running on .*QUIC",
    )


def granian() -> Program:
    """The ASGI server granian."""
    return Program(
        name="granian",
        listen=(WEB,),
        command=(
            *(PYTHON, "-m", "sockway.lab.servers.granian_fd"),
            *("{fd}", "sockway.lab.servers.app:app"),
        ),
        ready="http:/",
    )


def gunicorn() -> Program:
    """The WSGI server gunicorn, with one worker process of its own; it reads LISTEN_FDS."""
    return Program(
        name="gunicorn",
        listen=(WEB,),
        command=(
            *(PYTHON, "-m", "gunicorn", "sockway.lab.servers.wsgi:app"),
            *("--workers", "1", "--worker-class", "gthread", "--threads", "8"),
            "--no-control-socket",
            *("--keep-alive", "30", "--worker-tmp-dir", "/dev/shm"),  # noqa: S108
        ),
        ready="http:/",
    )


def nginx(directory: Path) -> Program:
    """The web server nginx, answering from its configuration, in *directory*.

    Raises `ConfigError` if it is not installed.
    """
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        raise ConfigError("nginx is not installed", hint="apt-get install nginx-light")
    conf = directory / "nginx.conf"
    conf.write_text(NGINX_CONF.format(directory=directory))
    return Program(
        name="nginx",
        listen=(WEB,),
        command=(
            *(binary, "-p", str(directory), "-c", str(conf), "-e", "stderr"),
            # Of its own for each: nginx removes the file that it wrote its pid to.
            *("-g", f"pid {directory}/{{generation}}-{{worker}}.pid;"),
        ),
        ready="http:/",
        env={"NGINX": "{fd};"},
        # Its idle connections last keepalive_time at most; --linger gives clients that long.
        options=("--stop-signal", "QUIT", "--linger", "3"),
    )


NGINX_CONF = """\
# nginx takes listening sockets from its parent by the variable NGINX, if the
# addresses are the same. One master and one worker process for each of ours.
daemon off;
worker_processes 1;
error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type text/plain;
    # A connection that is this old gets "Connection: close" with its next answer.
    keepalive_time 1s;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen [::]:8080 ipv6only=off;
        location / {{ return 200 "$pid"; }}
    }}
}}
"""
