"""A generation: the sockets of one release of a service.

It is opened with its sockets in place and not yet visible, published by one store, drained, and
closed. Its record (a slot of the service's, `struct generation`) and its arrays are the router's;
this class is one process's handle on them and may be had by several processes at once. Only the
one that opened it holds its sockets, until it has passed them on.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self

from sockway.errors import ConfigError, StateError
from sockway.kernel import Map
from sockway.sockets import layout
from sockway.sockets.binding import family_of, join_socket, open_socket
from sockway.sockets.counters import WorkerCount, clear_worker, read_worker
from sockway.sockets.drain import (
    INTERVAL,
    DrainProgress,
    DrainWatch,
    adrain,
    adraining,
    drain,
    draining,
)
from sockway.sockets.owners import processes_of
from sockway.sockets.state import new_array
from sockway.sockets.vips import PlacedVip
from sockway.sockets.weights import assign, check_weights
from sockway.wire.addresses import Vip
from sockway.wire.host_id import HostIds

if TYPE_CHECKING:
    from types import TracebackType

    from sockway.sockets.service import Service

_BATCH: Final = 256
"""Arrays made and written at a time: each costs a descriptor until it is in the map."""


class Generation:
    """A handle on one generation of a service; see `Service.generation` and `.generations`."""

    def __init__(self, service: Service, number: int, backlog: int = 4096) -> None:
        """Refer to the generation with this number; made by `Service` only."""
        self.service = service
        self.number = number
        self._backlog = backlog
        self._sockets: dict[int, dict[Vip, socket.socket]] = {}
        self._lock: contextlib.ExitStack | None = None
        self._placed: list[PlacedVip] | None = None

    # What it is

    @property
    def _slot(self) -> Any:
        return self.service.record.generations[self.number % layout.limit("GENERATIONS")]

    @property
    def is_open(self) -> bool:
        """Whether the router still has it."""
        return int(self._slot.number) == self.number

    @property
    def is_published(self) -> bool:
        """Whether new flows go to it."""
        return int(self.service.record.published) == self.number

    @property
    def state(self) -> str:
        """`published`, `preparing`, `live` (was published; drains or can be rolled back to), or
        `closed`.
        """  # noqa: D205 - one list
        if not self.is_open:
            return "closed"
        if self.is_published:
            return "published"
        live = layout.constant("generation_state", "GENERATION_LIVE")
        return "live" if int(self._slot.state) == live else "preparing"

    @property
    def workers(self) -> int:
        """How many workers it has."""
        return int(self._checked().workers)

    @property
    def opened_at(self) -> float:
        """When it was opened, in seconds since the epoch."""
        return float(self._checked().opened_at)

    @property
    def fallback(self) -> int:
        """Number of the generation that gets its flows when all its sockets are gone, or 0."""
        return int(self._checked().fallback)

    def __repr__(self) -> str:
        """Name, number and state, for people."""
        return f"<Generation {self.number} of {self.service.name}: {self.state}>"

    # Its sockets

    def sockets(self, worker: int) -> dict[Vip, socket.socket]:
        """The worker's sockets, by VIP: bound, listening where TCP, not inheritable.

        They are this handle's until `release_sockets`; pass them on by descriptor.

        Raises:
            StateError: they were released, or made by another process.

        """
        self._check_worker(worker)
        try:
            return dict(self._sockets[worker])
        except KeyError:
            raise StateError(
                f"generation {self.number} has no sockets of worker {worker} in this process",
                hint="they were released or belong to another process; `replace_worker` makes new",
            ) from None

    def release_sockets(self, worker: int) -> None:
        """Close this process's descriptors of the worker's sockets.

        After that they live as long as the worker has them open, and leave the router when it
        dies, whatever way it dies.
        """
        for sock in self._sockets.pop(worker, {}).values():
            sock.close()

    def release_all(self) -> None:
        """`release_sockets` for all workers, and the service's lock given back if it is held.

        For a process that leaves the generation to its workers, published or not.
        """
        for worker in list(self._sockets):
            self.release_sockets(worker)
        self._give_back_lock()

    def replace_worker(self, worker: int) -> dict[Vip, socket.socket]:
        """New sockets in the worker's places, for a process that takes over from a dead one.

        Connections that wait at a listener which is replaced stay with it until it is closed.

        Raises:
            StateError: the generation is closed, or its addresses can't be bound any more.

        """
        self._check_worker(worker)
        placed = self.bound()
        made = self._bind(placed, worker)
        for p in placed:
            with self._array(p.group) as array:
                array[worker] = made[p.vip].fileno()
        self.release_sockets(worker)
        self._sockets[worker] = made
        return dict(made)

    def live_sockets(self) -> dict[tuple[Vip, int], int]:
        """Socket cookies (SO_COOKIE) of what is in the arrays, by VIP and worker."""
        return {(vip, worker): cookie for vip, worker, cookie in self._live()}

    def alive(self) -> bool:
        """Whether any of its sockets is in the router."""
        return any(True for _ in self._live())

    @property
    def vips(self) -> list[Vip]:
        """The VIPs that it has sockets for."""
        return [p.vip for p in self.bound()]

    @property
    def has_udp(self) -> bool:
        """Whether it serves UDP."""
        return any(vip.protocol == "udp" for vip in self.vips)

    def processes(self) -> set[int]:
        """Ids of the processes that have any of its sockets open, this one left out."""
        return processes_of(self.vips, set(self.live_sockets().values()))

    # Publishing

    def publish(self) -> None:
        """Make it the one that new flows go to: all VIPs at once, in one store.

        The generation published before becomes its fall-back and goes on with the flows that it
        owns. The release lock is given back.

        Raises:
            StateError: it is closed, or none of its sockets is alive.
            BusyError: another process is changing the service.

        """
        with self._changing():
            slot = self._checked()
            if not self.alive():
                raise StateError(
                    f"generation {self.number} of {self.service.name} has no live socket",
                    hint="its workers are dead; open a new generation",
                )
            before = int(self.service.record.published)
            if before != self.number:
                self.service.unlink(self.number)
                slot.fallback = before
                slot.state = layout.constant("generation_state", "GENERATION_LIVE")
                # The switch. All else was in place before this store.
                self.service.record.published = self.number
        self._give_back_lock()

    def close(self, *, force: bool = False) -> None:
        """Take it out of the router and close this process's descriptors of its sockets.

        Raises:
            StateError: it is published, and `force` is not given.
            BusyError: another process is changing the service.

        """
        if self.is_open:
            with self._changing():
                if self.is_published and not force:
                    raise StateError(
                        f"generation {self.number} of {self.service.name} is published",
                        hint="publish another first, or close it by force",
                    )
                self.take_out()
        for worker in list(self._sockets):
            self.release_sockets(worker)
        self._give_back_lock()

    def __enter__(self) -> Self:
        """Return itself: a generation that is not published when the block ends is closed."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it if the block did not publish it."""
        if self._lock is not None:
            self.close()

    # While it runs

    @property
    def weights(self) -> list[float]:
        """Each worker's share of new flows on VIPs with spread=weights; sums to 1."""
        table = list(self._weight_table())
        return [table.count(worker) / len(table) for worker in range(self.workers)]

    def set_weights(self, weights: Sequence[float]) -> None:
        """Change the workers' shares of new flows on VIPs with spread=weights, at once.

        Known flows stay where they are.

        Args:
            weights: one for each worker; 0 takes it out of the choice.

        Raises:
            ConfigError: they are no split of the load.

        """
        self._checked()
        check_weights(weights, self.workers)
        table = self._weight_table()
        for slot, worker in enumerate(assign(weights, len(table), list(table))):
            if table[slot] != worker:
                table[slot] = worker

    def counts(self) -> list[WorkerCount]:
        """Packets that each worker got."""
        return [read_worker(self.service.state, self.number, w) for w in range(self.workers)]

    def ids(self, length: int) -> HostIds:
        """The codec of connection IDs of this service, for IDs of `length` octets."""
        return HostIds(self.service.state.id_key, length)

    @contextlib.contextmanager
    def probe_socket(self, vip: Vip, worker: int) -> Iterator[socket.socket]:
        """A TCP socket whose connection to the VIP meets this worker, published or not.

        It is bound, not connected; the router knows its address and port while the block lasts.

        Raises:
            ConfigError: the VIP is not TCP.
            StateError: the generation is closed, or another probe is under way.

        """
        if vip.protocol != "tcp":
            raise ConfigError(f"{vip} can't be probed by a connection", hint="probe a TCP VIP")
        self._check_worker(worker)
        with contextlib.ExitStack() as cleanup:
            sock = cleanup.enter_context(_probe_socket(vip))
            probe = self.service.record.probe
            if probe.port:
                raise StateError("another readiness probe is under way", hint="wait for it to end")
            address, port = sock.getsockname()[:2]
            packed = socket.inet_pton(sock.family, address)
            mapped = packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed  # noqa: PLR2004
            probe.address[:] = memoryview(mapped).cast("I")
            probe.worker = worker
            probe.generation = self.number
            probe.port = port
            cleanup.callback(setattr, probe, "port", 0)
            yield sock

    # Draining

    def drain_progress(self) -> DrainProgress:
        """What it has at this moment. A `DrainWatch` also sees what goes on between two looks."""
        return DrainWatch(self).look()

    def drain(
        self, deadline: float, on_progress: Callable[[DrainProgress], None] | None = None
    ) -> DrainProgress:
        """Wait until it has no connection and no flow left, for `deadline` seconds at most.

        Args:
            deadline: seconds.
            on_progress: called with each look.

        Returns:
            The last look; its `expired` tells whether something was left.

        """
        return drain(self, deadline, on_progress)

    def draining(self, deadline: float, interval: float = INTERVAL) -> Iterator[DrainProgress]:
        """Each look of a drain; the last one is `done` or `expired`."""
        return draining(self, deadline, interval)

    def adraining(
        self, deadline: float, interval: float = INTERVAL
    ) -> AsyncIterator[DrainProgress]:
        """Each look of a drain, for asyncio."""
        return adraining(self, deadline, interval)

    async def adrain(
        self, deadline: float, on_progress: Callable[[DrainProgress], None] | None = None
    ) -> DrainProgress:
        """`drain` for asyncio."""
        return await adrain(self, deadline, on_progress)

    # For the service

    def hold(self, lock: contextlib.ExitStack) -> None:
        """Keep the service's lock until it is published or closed."""
        self._lock = lock

    def fill(self, placed: Sequence[PlacedVip], workers: int) -> None:
        """Claim the slot, make the sockets, fill the arrays: all but the publishing."""
        self._placed = list(placed)
        slot = self._slot
        slot.workers = workers
        slot.fallback = int(self.service.record.published)
        slot.opened_at = int(time.time())
        slot.state = layout.constant("generation_state", "GENERATION_PREPARING")
        slot.number = self.number
        try:
            table = self._weight_table()
            table[:] = assign([1.0] * workers, len(table))
            for worker in range(workers):
                clear_worker(self.service.state, self.number, worker)
                self._sockets[worker] = {}
            self._make_arrays(placed, workers)
        except BaseException:
            self.take_out()
            for worker in list(self._sockets):
                self.release_sockets(worker)
            raise

    def _make_arrays(self, placed: Sequence[PlacedVip], workers: int) -> None:
        """Make the sockets and arrays, and write the arrays in batches.

        A write to a map of maps waits for an RCU grace period, a batch of them for one.
        """
        remaining = iter(placed)
        while batch := list(islice(remaining, _BATCH)):
            with contextlib.ExitStack() as arrays:
                keys, values = [], []
                for p in batch:
                    array = arrays.enter_context(new_array(workers))
                    for worker in range(workers):
                        sock = self._bind([p], worker)[p.vip]
                        self._sockets[worker][p.vip] = sock
                        array[worker] = sock.fileno()
                    keys.append(self._array_key(p.group))
                    values.append(array)
                self.service.state.maps["arrays"].update_batch(keys, values)

    def _bind(self, placed: Iterable[PlacedVip], worker: int) -> dict[Vip, socket.socket]:
        made: dict[Vip, socket.socket] = {}
        try:
            for p in placed:
                if worker == 0 or not self._sockets.get(worker - 1):
                    program = self.service.state.program(p.vip.flow)
                    made[p.vip] = open_socket(p.vip, self._backlog, program.attach_reuseport)
                else:
                    made[p.vip] = join_socket(p.vip, self._backlog)
        except BaseException:
            for sock in made.values():
                sock.close()
            raise
        return made

    def take_out(self) -> None:
        """Mend the chain of fall-backs, drop arrays and VIPs nobody binds, free the slot.

        To be called with the service's lock held.
        """
        service = self.service
        groups = {p.group for p in self.bound()}
        slot = self._slot
        if self.is_published:
            # As the router itself would: to the one before, as long as that lives.
            service.record.published = int(slot.fallback)
        service.unlink(self.number)
        if groups:
            service.state.clear_arrays([self._array_key(group) for group in groups])
        service.forget_unbound(but=self.number)
        # The last: a process killed before this leaves the rest to the next `collect`.
        slot.state = layout.constant("generation_state", "GENERATION_FREE")
        slot.number = 0

    def bound(self) -> list[PlacedVip]:
        """Its VIPs, with their places, that have sockets."""
        if self._placed is None:
            self._placed = [p for p in self.service.bound_vips() if self._has_array(p.group)]
        return self._placed

    def _live(self) -> Iterator[tuple[Vip, int, int]]:
        """VIP, worker and cookie of each socket that is in an array."""
        if not self.is_open:
            return
        workers = self.workers
        for placed in self.bound():
            if not self._has_array(placed.group):
                continue
            with self._array(placed.group) as array:
                for worker in range(workers):
                    cookie = array.get(worker)
                    if cookie:
                        yield placed.vip, worker, int(cookie)

    def _array_key(self, group: int) -> int:
        # array_index in bpf/pick.h
        slots = layout.limit("GENERATIONS")
        return group * slots + self.number % slots

    def _has_array(self, group: int) -> bool:
        return self.service.state.has_array(self._array_key(group))

    def _array(self, group: int) -> Map:
        map_id = self.service.state.maps["arrays"][self._array_key(group)]
        return Map.from_id(int(map_id))

    def _weight_table(self) -> Any:
        return self.service.weight_tables[self.number % layout.limit("GENERATIONS")].worker

    def _checked(self) -> Any:
        if not self.is_open:
            raise StateError(
                f"generation {self.number} of {self.service.name} is closed",
                hint="`sockway status` lists those that are live",
            )
        return self._slot

    def _check_worker(self, worker: int) -> None:
        if not 0 <= worker < self.workers:
            raise ConfigError(
                f"generation {self.number} has no worker {worker}",
                hint=f"its workers are 0 to {self.workers - 1}",
            )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        if self._lock is not None:
            yield
        else:
            with self.service.changing():
                yield

    def _give_back_lock(self) -> None:
        if self._lock is not None:
            lock, self._lock = self._lock, None
            lock.close()


def _probe_socket(vip: Vip) -> socket.socket:
    """A TCP socket bound to a free port of the address that the VIP is reached from."""
    family = family_of(vip)
    if vip.is_wildcard:
        source = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    else:
        source = str(vip.address)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind((source, 0))
    except BaseException:
        sock.close()
        raise
    return sock
