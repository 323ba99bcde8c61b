"""A balancer: what is pinned of it, and what can be done with it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from sockway.balancer import attach as attachments
from sockway.balancer import ledger as ledgers
from sockway.balancer import modes, modeswitch, redirects
from sockway.balancer.apply import apply, leaving_by, unknown_ways, write_ways
from sockway.balancer.capture import Capture
from sockway.balancer.config import problems
from sockway.balancer.constants import configuring, constants_of
from sockway.balancer.counters import BalancerCounters, read_counters
from sockway.balancer.explain import Explanation, explain
from sockway.balancer.follower import follow, opened
from sockway.balancer.idtable import IdTable, buckets_that_fit
from sockway.balancer.ledger import Ledger
from sockway.balancer.modes import Choice, Plan
from sockway.balancer.nexthop import Found, Ways, ways_out
from sockway.balancer.plan import Change, changes
from sockway.balancer.spec import BackendSpec, BalancerSpec
from sockway.balancer.standing import BackendStatus, standing
from sockway.balancer.state import BalancerState, directory_of
from sockway.errors import BusyError, ConfigError, KernelError, NotFoundError
from sockway.kernel import Program
from sockway.places import written

_LOOKS: Final = 10
"""Refreshes between two looks at what devices can do, while the ways out stay as they are."""


class Balancer:
    """One balancer of the current network namespace. Closing it changes nothing of its work."""

    def __init__(self, state: BalancerState) -> None:
        """Take over what is open; see `open` and `existing`."""
        self._opened = state
        self._ways = Ways()
        self._read: tuple[object, Ledger] | None = None
        """The ledger that was read last, and which one it was."""
        self._looks = 0
        self._left_by: set[int] | None = None
        """Devices that backends were reached by when modes were looked at last, and looks since."""
        self._made_for: tuple[Any, ...] | None = None
        """What is constant in programs that were just loaded, while no configuration says so."""

    @classmethod
    def open(cls, spec: BalancerSpec, *, root: Path | str | None = None) -> Self:
        """The balancer of this configuration's name, made if it is not there. Nothing is applied.

        Raises:
            IncompatibleError: it was made by a version with other layouts.
            KernelError: the kernel refused it; `VerifierError` has the log.
            PermissionDenied: it takes root.

        """
        directory = directory_of(spec.name, root)
        try:
            return cls(BalancerState.open(directory))
        except NotFoundError:
            empty = Ledger(spec=BalancerSpec(name=spec.name))
            sizes = empty.target(spec).sizes().rounded()
            jumbo = spec.mode != "generic" and modes.wants_several(spec.interfaces)
            configure = configuring(empty.spec, spec)
            fresh = cls(BalancerState.create(directory, sizes, configure, jumbo=jumbo))
            fresh._made_for = constants_of(spec)
            return fresh

    @classmethod
    def existing(cls, name: str = "main", *, root: Path | str | None = None) -> Self:
        """The balancer of this name.

        Raises:
            NotFoundError: there is none.

        """
        return cls(BalancerState.open(directory_of(name, root)))

    @property
    def spec(self) -> BalancerSpec:
        """The configuration in force."""
        return self._ledger.spec

    @property
    def _state(self) -> BalancerState:
        """The maps in force: opened again if another process has made them larger or newer."""
        if not self._opened.is_in_force:
            fresh = BalancerState.open(self._opened.directory)
            self._opened.close()
            self._opened, self._made_for = fresh, None
        return self._opened

    @property
    def _ledger(self) -> Ledger:
        state = self._state
        now = _edition(state)
        if self._read is None or self._read[0] != now:
            self._read = (now, ledgers.read(state))
        return self._read[1]

    def plan(self, spec: BalancerSpec) -> list[Change]:
        """What `apply` would change.

        Raises:
            ConfigError: the configuration contradicts itself.

        """
        for location, words, hint in problems(spec):
            raise ConfigError(f"{written(location)}: {words}", hint=hint)
        if spec.registry is not None and spec.registered is None:
            raise ConfigError(
                f"server IDs are to be taken from {spec.registry}, and were not",
                hint="sockway.fleet.resolve(spec) takes them",
            )
        return changes(self.spec, spec)

    def apply(self, spec: BalancerSpec) -> list[Change]:
        """Bring a configuration into force: all of it, or nothing. What changed.

        Raises:
            ConfigError: the configuration contradicts itself.
            BusyError: another process is changing this balancer, or brought later server IDs.
            KernelError: the kernel refused a part; nothing has changed.

        """
        found = self.plan(spec)
        with self._changing() as before, opened(spec.next) as follower:
            _refuse_older_ids(before.spec, spec)
            attachments.check(self._opened.directory, spec.interfaces)
            after = before.target(spec)
            ways = ways_out(unknown_ways(self._state, before, after))
            with modes.planned(
                self._opened.directory, spec, leaving_by(self._state, after, ways), before.modes,
                several=self._state.is_jumbo,
            ) as plan:  # fmt: skip
                after = replace(after, modes=plan.choices)
                stood = modeswitch.real_modes(self._opened.directory)
                try:
                    self._bring(before, after, follower, plan=plan, ways=ways)
                    self._attach(spec, plan)
                    self._note(plan.choices)
                except BaseException:
                    # As before, as far as the kernel lets: a pool's history stays longer.
                    old = replace(after.target(before.spec), modes=before.modes)
                    try:
                        with opened(before.spec.next, missing_ok=True) as follower_before:
                            self._bring(after, old, follower_before)
                        self._put_back(stood)
                    finally:
                        self._note_real(before.modes, plan.choices)
                    raise
        return found

    def set_weight(self, pool: str, backend: str, weight: int) -> list[Change]:
        """Give a backend another share of new flows; with 0 it keeps what it has and gets none.

        Raises:
            NotFoundError: there is no such pool, or no such backend in it.
            ConfigError: the weight can't be.

        """
        spec = self.spec
        self._backend(pool, backend)
        backends = spec.pool[pool].backends
        try:
            fields = backends[backend].model_dump() | {"weight": weight}
            changed = BackendSpec.model_validate(fields)
        except ValueError:
            raise ConfigError(f"weight {weight} can't be", hint="it is 0 to 65535") from None
        pools = dict(spec.pool)
        pools[pool] = pools[pool].model_copy(update={"backends": backends | {backend: changed}})
        return self.apply(spec.model_copy(update={"pool": pools}))

    def set_down(self, backend: str, *, down: bool = True) -> None:
        """Say that a backend is dead, or alive again: its flows go to others, at once.

        Raises:
            NotFoundError: there is no such backend.

        """
        with self._changing() as before:
            self._known(before, backend)
            gone = before.down | {backend} if down else before.down - {backend}
            self._bring(before, replace(before.target(before.spec), down=frozenset(gone)))

    def set_drained(self, backend: str, *, drained: bool = True) -> None:
        """Have a backend keep the flows that it has and get no new ones, or take part again.

        It stays drained across `apply` until it is restored.

        Raises:
            NotFoundError: there is no such backend.

        """
        with self._changing() as before:
            self._known(before, backend)
            idle = before.drained | {backend} if drained else before.drained - {backend}
            target = replace(before.target(before.spec), drained=frozenset(idle))
            self._bring(before, target)

    def set_failing(self, failing: Mapping[str, Literal["move", "drain"]]) -> None:
        """Say which backends fail by their health checks: these, and no others.

        Args:
            failing: their names; `move`: their flows go to others, `drain`: they keep them.

        """
        with self._changing() as before:
            known = {name: how for name, how in failing.items() if name in before.backends}
            if known != before.failing:
                self._bring(before, replace(before.target(before.spec), failing=known))

    @property
    def failing(self) -> Mapping[str, Literal["move", "drain"]]:
        """Backends that health checks took out."""
        return self._ledger.failing

    @property
    def set_aside(self) -> frozenset[str]:
        """Backends that operators said are dead, or drained."""
        return self._ledger.down | self._ledger.drained

    @property
    def ways(self) -> Found:
        """The ways out to all backends, as the last `refresh` of this process found them."""
        return self._ways.known

    def restore(self, backend: str) -> None:
        """Have a drained or dead backend take part again.

        Raises:
            NotFoundError: there is no such backend.

        """
        with self._changing() as before:
            self._known(before, backend)
            only = frozenset({backend})
            target = before.target(before.spec)
            target = replace(target, down=target.down - only, drained=target.drained - only)
            self._bring(before, target)

    def refresh(self) -> int:
        """Ask for the ways out to all backends again; how many changed.

        What left, and has had its time, is forgotten: its IDs lead nowhere from now on.
        """
        with self._changing() as before:
            book = before.target(before.spec) if before.is_over() else before
            if book is not before:
                apply(self._state, before, book, {})
                self._read = (_edition(self._state), book)
            backends = [b for pool in book.spec.pool.values() for b in pool.backends.values()]
            ways = self._ways.look(b.address for b in backends)
            self._look_at_modes(book, ways)
            return write_ways(self._state, book, ways)

    def status(self) -> dict[str, list[BackendStatus]]:
        """All backends, by pool."""
        return standing(self._state, self._ledger)

    @property
    def interfaces(self) -> list[str]:
        """Where it is attached."""
        return attachments.attached(self._opened.directory)

    @property
    def modes(self) -> Mapping[str, Choice]:
        """Where XDP runs on each interface, and why, as it was chosen last."""
        return self._ledger.modes

    def losing(self) -> dict[str, str]:
        """Say why packets are lost, by interface, where devices are not what they were any more.

        Raises:
            KernelError: the kernel can't be asked.

        """
        ways = leaving_by(self._state, self._ledger, {})
        return modes.losing(self.interfaces, ways, several=self._state.is_jumbo)

    def counters(self) -> BalancerCounters:
        """What was counted since the balancer was made."""
        return read_counters(self._state, self._ledger)

    def capture(self, vip: str | None = None, *, every: int = 1) -> Capture:
        """Packets of a VIP, or of all, as they come in; see `Capture`.

        Args:
            vip: as it is listed, `tcp://192.0.2.1:443`, or its address alone, for its ICMP.
            every: one of so many packets, by chance.

        Raises:
            NotFoundError: there is no such VIP.
            BusyError: another process captures.

        """
        return Capture(self._state, self._ledger, vip, every)

    def explain(self, frame: bytes) -> Explanation:
        """What would become of an Ethernet frame; nothing is changed or counted."""
        return explain(self._state, self._ledger, frame)

    def remove(self) -> None:
        """Detach it everywhere and unpin all of it."""
        directory = self._opened.directory
        self.close()
        _remove(directory)

    def close(self) -> None:
        """Close this process's descriptors; the balancer goes on."""
        self._opened.close()

    def __enter__(self) -> Self:
        """Return itself; it is closed when the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Ledger]:
        try:
            lock = self._state.lock()
            with lock:
                yield self._ledger
        except BusyError as error:
            if error.hint:
                raise
            raise BusyError(
                f"balancer {self.spec.name} is being changed by another process",
                hint="wait until it is done",
            ) from None

    def _look_at_modes(self, book: Ledger, ways: Found) -> None:
        """Take interfaces to generic mode that would lose packets with the ways out of now.

        Where the configuration wants native mode it stays, and `losing` and `sockway doctor` say
        what is lost.
        """
        leaving = {way.ifindex for way in ways.values() if way is not None}
        self._looks += 1
        changed = leaving != self._left_by
        if not changed and self._looks % _LOOKS:
            return
        self._left_by, state = leaving, self._state
        trouble = modes.losing(self.interfaces, leaving, several=state.is_jumbo, trying=changed)
        if not trouble or book.spec.mode == "native":
            return
        lower = {name: Choice(name, "generic", words) for name, words in trouble.items()}
        with state.program("balancer") as program:
            plan = Plan(lower, several=state.is_jumbo)
            try:
                modeswitch.lower(state.directory, plan, program)
            finally:
                self._note_real(lower, book.modes)

    def _note(self, choices: Mapping[str, Choice]) -> None:
        """Write down what was chosen for the interfaces."""
        book = self._ledger
        if choices != book.modes:
            noted = replace(book, modes=dict(choices))
            ledgers.write(self._state, noted)
            self._read = (_edition(self._state), noted)

    def _note_real(self, *said: Mapping[str, Choice]) -> None:
        """Write down what interfaces have, by the choices that are so."""
        self._note(modeswitch.in_force(self._state.directory, *said))

    def _put_back(self, stood: Mapping[str, str | None]) -> None:
        with self._state.program("balancer") as program:
            modeswitch.put_back(self._state.directory, stood, program)
            self._watch(program, self.interfaces)

    def _bring(
        self,
        before: Ledger,
        after: Ledger,
        follower: Program | None = None,
        *,
        plan: Plan | None = None,
        ways: Found | None = None,
    ) -> None:
        """Bring a ledger into force, over larger maps or newer programs where that needs them.

        Args:
            before: what is in force.
            after: what shall be.
            follower: what gets packets for no VIP from now on; None: what gets them now.
            plan: what was chosen for the interfaces, if that may change.
            ways: the ways out to what is new, if they were asked for already.

        """
        state, needed = self._state, after.sizes()
        if after.ids != before.ids:
            held = IdTable(state.ids, len(state.ids))
            needed = replace(needed, ids=buckets_that_fit(held, after.ids, needed.ids))
        present = self._made_for or constants_of(before.spec)
        # Never back: it runs as well where frames are single buffers.
        jumbo = state.is_jumbo or (plan is not None and plan.several)
        outdated = (
            not state.is_up_to_date
            or present != constants_of(after.spec)
            or jumbo != state.is_jumbo
        )
        if outdated or not state.sizes.covers(needed) or needed.flows != state.sizes.flows:
            here = state.sizes
            larger = needed.rounded()
            sizes = replace(
                here,
                flows=needed.flows,
                **{
                    name: getattr(larger, name)
                    for name in ("vips", "pools", "slots", "backends", "notes", "ids")
                    if getattr(here, name) < getattr(needed, name)
                },
            )
            state.renew(sizes, configuring(before.spec, after.spec), jumbo=jumbo)
            self._made_for = None
            try:
                follow(state, follower)  # before a packet meets the program
            finally:
                with state.program("balancer") as program:
                    self._watch(program, self.interfaces)
                    attachments.update_all(state.directory, program)
        else:
            follow(state, follower)
        if plan is not None:  # before a packet goes the new ways
            with state.program("balancer") as program:
                modeswitch.lower(state.directory, plan, program)
        if ways is None:
            ways = ways_out(unknown_ways(state, before, after))
        apply(state, before, after, ways)
        self._read = (_edition(state), after)
        self._made_for = None

    def _attach(self, spec: BalancerSpec, plan: Plan) -> None:
        directory = self._state.directory
        with self._state.program("balancer") as program:
            self._watch(program, {*self.interfaces, *spec.interfaces})
            modeswitch.carry_out(directory, spec, plan, program)
            for interface in self.interfaces:
                if interface not in spec.interfaces:
                    attachments.detach(directory, interface)
            self._watch(program, spec.interfaces)

    def _watch(self, program: Program, interfaces: Iterable[str]) -> None:
        """Count what the program loses behind its back, where the kernel can tell."""
        with contextlib.suppress(KernelError):  # `sockway doctor` says why it is not counted
            redirects.watch(self._state.directory, [program.id], interfaces)

    def _known(self, book: Ledger, backend: str) -> None:
        if backend not in book.backends:
            raise NotFoundError(
                f"there is no backend {backend!r}",
                hint=f"there are: {', '.join(sorted(book.backends)) or 'none yet'}",
            )

    def _backend(self, pool: str, backend: str) -> None:
        pools = self.spec.pool
        if pool not in pools:
            raise NotFoundError(
                f"there is no pool {pool!r}", hint=f"pools are: {', '.join(sorted(pools))}"
            )
        if backend not in pools[pool].backends:
            raise NotFoundError(
                f"pool {pool} has no backend {backend!r}",
                hint=f"it has: {', '.join(sorted(pools[pool].backends))}",
            )


def remove_balancer(name: str = "main", *, root: Path | str | None = None) -> None:
    """Detach and unpin a balancer of whatever version, also one that is not whole.

    Raises:
        NotFoundError: there is none.

    """
    directory = directory_of(name, root)
    if not directory.is_dir():
        raise NotFoundError(f"there is no balancer {name!r} in this network namespace")
    _remove(directory)


def _remove(directory: Path) -> None:
    for interface in attachments.attached(directory):
        attachments.detach(directory, interface)
    shutil.rmtree(directory)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()


def _refuse_older_ids(before: BalancerSpec, after: BalancerSpec) -> None:
    """Who read the registry earlier must not undo what was brought into force later.

    Else an ID that the balancer has reported, and is told to clients, would be forgotten.
    """
    here, new = before.registered, after.registered
    if here and new and here.registry == new.registry and here.revision > new.revision:
        raise BusyError(
            f"balancer {after.name} has server IDs of revision {here.revision} in force, these "
            f"are of {new.revision}",
            hint="another process was faster: apply it again",
        )


def _edition(state: BalancerState) -> tuple[int, int]:
    """Tells one ledger from another that this process has read."""
    return state.number, int(state.settings.notes)


__all__ = ["BackendStatus", "Balancer", "remove_balancer"]
