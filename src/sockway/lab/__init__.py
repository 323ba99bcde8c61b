"""The lab: real servers, real sockets and real load, on one machine.

An experiment puts a server under load, releases it again and again, and counts
what the clients lost: once through Sockway and once the way that needs nothing
but the kernel, plain SO_REUSEPORT, with the same server programs, the same
clients and the same number of releases. The parts:

``servers``    programs that are released: an ASGI application, a small HTTP
               server and a UDP echo, and what makes them bind late
``load``       clients, each kind a process of its own
``releasers``  how a release is done: by ``sockway serve``, or by SO_REUSEPORT
``scenario``   one server, one system, one kind of load, some releases
``report``     the table, the figures as JSON, the plot

Everything runs in a network namespace of its own (``sandbox``), so nothing of
the machine's own network is touched or can disturb a measurement.
"""

from __future__ import annotations
