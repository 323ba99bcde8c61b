"""A service: what one L7 server serves on this host, and its generations."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from sockway.errors import BusyError, ConfigError, NotFoundError, StateError
from sockway.sockets import layout
from sockway.sockets.counters import Counters, read_decisions
from sockway.sockets.generation import Generation
from sockway.sockets.state import (
    FLOW_TIMEOUT,
    ID_TIMEOUT,
    MAX_TIMEOUT,
    MAX_VIPS,
    RouterState,
    check_name,
    namespace_directory,
    service_names,
    sweep,
)
from sockway.sockets.vips import PlacedVip, VipTable, label
from sockway.wire.addresses import Vip

if TYPE_CHECKING:
    from types import TracebackType

DEFAULT_FLOWS: Final = 65_536
_LEAST_VIPS: Final = 64


class Service:
    """A service's pinned state, open in this process.

    Any number of processes may have the same service open. Changes are one at a time: who opens a
    generation holds the service's lock until it has published or closed it.
    """

    def __init__(self, name: str, state: RouterState, vips: tuple[Vip, ...]) -> None:
        """Use `Service.open` or `Service.attach`."""
        self.name = name
        self.state = state
        self.table = VipTable(state)
        self.weight_tables: Any = state.maps["weights"].mmap(
            layout.struct("weights") * layout.limit("GENERATIONS")
        )
        self._vips = vips

    # Opening and closing

    @classmethod
    def open(
        cls,
        name: str,
        vips: Iterable[Vip],
        *,
        flows: int = DEFAULT_FLOWS,
        flow_timeout: float = FLOW_TIMEOUT,
        id_timeout: float = ID_TIMEOUT,
        root: Path | str | None = None,
    ) -> Self:
        """Open a service to make generations of it; create its state where there is none.

        Args:
            name: 1 to 63 letters, digits, '-' and '_'.
            vips: what the next generation binds.
            flows: UDP flows that the flow table remembers without loss. Fixed when the service is
                created; without a UDP VIP that needs it there is no table.
            flow_timeout: seconds after which a silent flow is forgotten.
            id_timeout: the same for a connection that is known by its first packets' ID only.
            root: directory in bpffs; $SOCKWAY_BPFFS or /sys/fs/bpf/sockway unless given.

        Raises:
            ConfigError: a name, VIP or number that can't be used.
            IncompatibleError: the state is there, of another version's layout.
            KernelError: the kernel can't or may not do this (`sockway doctor` says what).

        """
        wanted = tuple(vips)
        directory = namespace_directory(root) / check_name(name)
        if not wanted:
            raise ConfigError(
                f"service {name!r} has no VIP", hint="give at least one, as tcp://[::]:8080"
            )
        count = sum(1 + len(vip.members) for vip in wanted)
        if count > MAX_VIPS:
            raise ConfigError(
                f"service {name!r} has {count} VIPs; {MAX_VIPS} are the most",
                hint="bind a wildcard, or split it into services",
            )
        if flows < 0 or flow_timeout <= 0 or id_timeout <= 0:
            raise ConfigError("flows and timeouts must be positive")
        if max(flow_timeout, id_timeout) > MAX_TIMEOUT:
            raise ConfigError(f"a flow can be remembered for {MAX_TIMEOUT:.0f} seconds at most")
        needs_flows = any(vip.protocol == "udp" and vip.flow != "none" for vip in wanted)
        try:
            state = RouterState.open(directory)
            sweep(directory)
        except NotFoundError:
            state = RouterState.create(
                directory,
                flows=flows if needs_flows else 0,
                vips=min(MAX_VIPS, max(_LEAST_VIPS, 1 << (2 * count - 1).bit_length())),
                flow_timeout=flow_timeout,
                id_timeout=id_timeout,
            )
        return cls(name, state, wanted)

    @classmethod
    def attach(cls, name: str, *, root: Path | str | None = None) -> Self:
        """Open a service that is there, to look at it or steer it.

        Raises:
            NotFoundError: it is not there.

        """
        directory = namespace_directory(root) / check_name(name)
        return cls(name, RouterState.open(directory), ())

    @staticmethod
    def names(root: Path | str | None = None) -> list[str]:
        """Names of the services in this network namespace, sorted."""
        return service_names(root)

    def close(self) -> None:
        """Close this process's descriptors. The service goes on."""
        self.weight_tables = None
        self.state.close()

    def remove(self) -> None:
        """Take the service out of the router and close it.

        Sockets that are still open are left to the kernel's hash from here on.

        Raises:
            BusyError: another process is changing it.

        """
        with self.changing():
            self.state.remove()
        self.close()

    def __enter__(self) -> Self:
        """Return itself; it is closed when the block ends, and goes on."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Name and place."""
        return f"<Service {self.name} at {self.state.directory}>"

    @property
    def record(self) -> Any:
        """The service's record in the router's memory (`struct service`)."""
        return self.state.record

    # Generations

    @property
    def generations(self) -> list[Generation]:
        """Those that the router has: the published one first, then in the order of fall-back,
        then those that were never published.
        """  # noqa: D205 - one sentence
        numbers = [int(slot.number) for slot in self.record.generations if slot.number]
        chain = [n for n in self._chain() if n in numbers]
        rest = sorted((n for n in numbers if n not in chain), reverse=True)
        return [Generation(self, number) for number in (*chain, *rest)]

    @property
    def published(self) -> Generation | None:
        """The generation that gets new flows, if there is one."""
        number = int(self.record.published)
        return Generation(self, number) if number else None

    def get(self, number: int) -> Generation:
        """The live generation with this number.

        Raises:
            NotFoundError: there is none.

        """
        for generation in self.generations:
            if generation.number == number:
                return generation
        raise NotFoundError(
            f"service {self.name} has no generation {number}",
            hint="live ones: " + (", ".join(str(g.number) for g in self.generations) or "none"),
        )

    def generation(self, workers: int = 1, *, backlog: int = 4096) -> Generation:
        """Open a generation: its sockets are made and in the router, and nobody is sent to them.

        The service's lock is held until it is published or closed.

        Args:
            workers: how many, each with its own socket for each VIP.
            backlog: longest accept queue of a listener, in connections.

        Raises:
            BusyError: another process is releasing this service.
            StateError: an address is taken, or too many generations are live.
            ConfigError: too many workers, or the service was attached and has no VIPs to bind.

        """
        most = layout.limit("WORKERS")
        if not 1 <= workers <= most:
            raise ConfigError(f"{workers} workers can't be used", hint=f"use 1 to {most}")
        if not self._vips:
            raise ConfigError(
                f"service {self.name} was attached, not opened with VIPs",
                hint="use Service.open to make generations",
            )
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.changing())
            # Probes are made under the lock: this one's maker is dead.
            self.record.probe.port = 0
            self.collect()
            placed = self.table.write(self._vips, may_change=not self.generations)
            made = Generation(self, self._next_number(), backlog)
            made.fill(placed, workers)
            made.hold(stack.pop_all())
        return made

    def rollback(self, number: int | None = None) -> Generation:
        """Publish an older live generation again, and return it.

        Args:
            number: which; without it, the one published before the present one.

        Raises:
            NotFoundError: there is none to go back to.
            StateError: it has no live socket any more.

        """
        if number is None:
            older = [n for n in self._chain()[1:] if Generation(self, n).alive()]
            if not older:
                raise NotFoundError(
                    f"service {self.name} has no older live generation to roll back to",
                    hint="keep it alive for a while after a release: `sockway serve --hold`",
                )
            number = older[0]
        generation = self.get(number)
        generation.publish()
        return generation

    def collect(self) -> list[int]:
        """Close generations that have no live socket, and return their numbers.

        They are what dead processes left behind. To be called with the lock held (`changing`).
        """
        dead = [g for g in self.generations if not g.alive()]
        for generation in dead:
            generation.take_out()
        self.forget_unbound()
        return [g.number for g in dead]

    # Looking

    def vips(self) -> list[PlacedVip]:
        """All VIPs of the service, with their places."""
        return self.table.read()

    def bound_vips(self) -> list[PlacedVip]:
        """The VIPs that have sockets of their own."""
        return [placed for placed in self.vips() if not placed.is_member]

    def counters(self) -> Counters:
        """What the router decided so far."""
        decisions = {label(p.vip): read_decisions(self.state, p.index) for p in self.vips()}
        if other := read_decisions(self.state, 0):
            decisions["other"] = other
        return Counters(decisions, {g.number: g.counts() for g in self.generations})

    # For generations

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the service's lock.

        Raises:
            BusyError: another process has it; it names that process.

        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.state.lock())
            except BusyError as error:
                raise BusyError(
                    f"service {self.name} is being changed by process {self.record.lock_holder}",
                    hint="wait for that release to end, or stop that process",
                ) from error
            self.record.lock_holder = os.getpid()
            yield

    def unlink(self, number: int) -> None:
        """Take a generation out of the chain of fall-backs."""
        slots = self.record.generations
        own = slots[number % len(slots)]
        for slot in slots:
            if slot.number and slot.fallback == number:
                slot.fallback = own.fallback

    def forget_unbound(self, but: int = 0) -> None:
        """Take VIPs out of the table that no generation has sockets for.

        Args:
            but: number of a generation that does not count: it is being closed.

        """
        bound = {p.group for g in self.generations if g.number != but for p in g.bound()}
        if unbound := {p.group for p in self.bound_vips()} - bound:
            self.table.drop(unbound)

    def _chain(self) -> list[int]:
        """Numbers from the published generation along the fall-backs."""
        slots = self.record.generations
        chain: list[int] = []
        number = int(self.record.published)
        while number and number not in chain:
            slot = slots[number % len(slots)]
            if slot.number != number:
                break
            chain.append(number)
            number = int(slot.fallback)
        return chain

    def _next_number(self) -> int:
        slots = self.record.generations
        first = int(self.record.last_number) + 1
        for number in range(first, first + len(slots)):
            if not slots[number % len(slots)].number:
                self.record.last_number = number
                return number
        raise StateError(
            f"{len(slots)} generations of {self.name} are live; no more fit",
            hint="end the oldest: `sockway drain` shows what they wait for",
        )
