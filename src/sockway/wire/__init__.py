"""The formats on the wire, without I/O.

Everything here is a function of its arguments: octets in, values out, or back. Nothing opens a
socket, reads a clock or needs a privilege, so all of it can be tested anywhere. It imports
nothing of the project but `sockway.errors`.
"""

from __future__ import annotations
