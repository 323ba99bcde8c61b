"""Start a server module that binds its port itself, with SO_REUSEPORT, once it is loaded.

Baseline of the experiments: what people do without Sockway is to start the new
process beside the old one, both bound to the port. A server that is handed a bound
UDP socket gets datagrams from that moment on, long before it can read them; a fair
baseline binds as late as it can, so this imports the server first, binds then, and
passes the sockets as descriptors 3 and up, as Sockway does. A TCP socket is left to
the server to listen on.

``LAB_BIND='URL...' python -m sockway.lab.servers.late_bind MODULE [ARGUMENT...]``
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

from sockway.takeover.starting import bind, import_first, pass_on

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Unlike Sockway's, workers of a baseline are no use without the experiment they belong to."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Import the module, bind, and run the module."""
    module, *arguments = sys.argv[1:]
    end_with_parent()
    import_first(module, arguments)
    pass_on([bind(url) for url in os.environ["LAB_BIND"].split()])
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
