"""What newer kernels do better, and which way is taken on the others.

None of it is needed: each row says either that the newer way is there, or what is used instead.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from sockway.kernel.features.feature import Probe, missing
from sockway.kernel.layout import ObjectLayout
from sockway.kernel.map import Map
from sockway.kernel.mapinfo import MapType
from sockway.kernel.netns import Netns
from sockway.kernel.object import BpfObject

_OBJECTS: Final = Path(__file__).parents[1] / "objects"
_LOOPBACK: Final = 1


def probes() -> list[Probe]:
    """All questions about newer ways."""
    return [
        Probe("tc programs by a link", "health checks, and tunnels taken off behind the driver",
              "", _tc_link, instead="filters of clsact"),
        Probe("batches on array_of_maps", "one grace period for a generation's maps together",
              "", _batch, instead="one after another, some milliseconds each"),
        Probe("waking listeners", "stamps of servers that listened before", "", _wake,
              instead="such servers tell their ID when a client asks for it"),
    ]  # fmt: skip


def _tc_link() -> str:
    with (
        Netns.create() as namespace,
        BpfObject.open(_OBJECTS / "health.bpf.o", name="health") as made,
    ):
        made.load()
        with made.program("checks") as program:
            namespace.run(lambda: program.attach_tcx(_LOOPBACK, incoming=False).close())
    return "attached by tcx"


def _batch() -> str:
    def sockets() -> Map:
        return Map.create(MapType.REUSEPORT_SOCKARRAY, key_size=4, value_size=8, max_entries=1)

    with (
        sockets() as first,
        sockets() as second,
        Map.create(
            MapType.ARRAY_OF_MAPS, key_size=4, value_size=4, max_entries=2, inner=first
        ) as outer,
    ):
        if not outer.update_batch([0, 1], [first, second]):
            raise missing("the kernel has none for maps of maps")
    return "works"


def _wake() -> str:
    with (
        Netns.create() as namespace,
        BpfObject.open(_OBJECTS / "stamp_listeners.bpf.o", name="stamp_listeners") as made,
    ):
        made.load()
        if not namespace.run(lambda: _woken(made)):
            raise missing("an iterator can't ask a listener to tell")
    return "works"


def _woken(made: BpfObject) -> int:
    """Try it on a listener in a namespace that nobody else sees."""
    with (
        made.program("listeners") as program,
        made.map("ports") as ports,
        made.map("woken") as woken,
        socket.socket() as listener,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ports[listener.getsockname()[1]] = ObjectLayout("stamp").constant(
            "stamp_role", "STAMP_SERVER"
        )
        program.iterate()
        return int(woken[0])
