"""Whether XDP runs in the driver or behind it: by what the devices on both sides can do.

A redirect is carried out after the program has returned. Where the other device can't take the
frame, native mode loses it, and no counter of the packet path knows. Generic mode hands the frame
to the device as any other packet, which works everywhere. So an interface is native only if

* its driver takes the program (which is tried, with one that passes everything),
* each device that backends are reached by takes redirected frames: Linux 6.3 and later tell; before
  that, a frame is sent to try it (`redirects.obstacles`),
* what is sent back out of it arrives: answers of the balancer, and packets to backends behind the
  interface itself. On veth that takes an XDP program on the peer, which no feature tells of.

Some drivers take redirected frames only with a program of their own. Where such a device is one of
the balancer's interfaces, programs are tried on all of them first, and then it is looked again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from sockway.balancer import attach as attachments
from sockway.balancer import redirects
from sockway.balancer.nexthop import index_of
from sockway.balancer.spec import BalancerSpec
from sockway.errors import KernelError, SockwayError, StateError
from sockway.kernel import Link, Program, XdpMode
from sockway.kernel.netdev import Device, XdpFeature, devices, refusal

_ANY_DRIVER: Final = 1500
"""MTU up to which every driver has one buffer for a frame."""
_BY_HAND: Final = "the configuration says so"


@dataclass(frozen=True)
class Choice:
    """Where XDP runs on an interface, and why."""

    interface: str
    mode: Literal["native", "generic"]
    reason: str
    refused_mtu: int = 0
    """MTU with which its driver refused native mode; 0: it did not. With the same MTU it is not
    asked again, because an attachment has to go for that."""


@dataclass
class Plan:
    """Choices for all interfaces, before anything is attached."""

    choices: dict[str, Choice]
    several: bool
    """The program is to be one for frames of several buffers: a driver takes no other."""
    ways_out: frozenset[int] = frozenset()
    """Indices of the devices that backends are reached by."""
    trials: dict[str, Link] = field(default_factory=dict)
    """Native attachments of a program that passes everything, to be given the balancer's."""


def obstacle(
    way_in: Device, ways_out: Iterable[Device], *, several: bool = False, trying: bool = True
) -> str | None:
    """Say why native mode on an interface would lose packets; None: it would not.

    Args:
        way_in: the interface, as it is now.
        ways_out: devices that backends are reached by.
        several: frames may be of several buffers.
        trying: send a frame to devices that the kernel does not tell of; else these are passed
            over.

    """
    if not _is_basic(way_in):
        return f"{_named(way_in)} has no native XDP"
    if way_in.kind == "veth" and not way_in.peer_has_program:
        seen = "has none" if way_in.peer_has_program is False else "can't be seen from here"
        return (
            f"what is sent back out of {way_in.name} needs an XDP program on its veth peer, "
            f"which {seen}"
        )
    others = [each for each in ways_out if each.index != way_in.index]
    can_redirect = way_in.features is None or way_in.features & XdpFeature.REDIRECT
    if others and not can_redirect:
        return f"{_named(way_in)} has no XDP_REDIRECT"
    if not trying:
        others = [each for each in others if each.features is not None]
    return _first_obstacle(others, several=several)


def _first_obstacle(ways_out: list[Device], *, several: bool) -> str | None:
    silent = [each for each in ways_out if each.features is None]
    try:
        tried = redirects.obstacles(silent) if silent and not several else {}
    except KernelError as error:
        return (
            f"the kernel does not tell whether {silent[0].name} takes redirected frames, and it "
            f"can't be tried: {error.message}"
        )
    for device in ways_out:
        if device.features is None:
            if several:
                return f"whether {device.name} takes redirected jumbo frames can't be known"
            if device.index in tried:
                return f"{_named(device)} does not take redirected frames ({tried[device.index]})"
        elif not device.features & XdpFeature.TRANSMIT:
            return f"{_named(device)} does not take redirected frames{_because(device)}"
        elif several and not device.features & XdpFeature.TRANSMIT_SEVERAL:
            return f"{_named(device)} does not take redirected jumbo frames"
    return None


def _because(device: Device) -> str:
    if device.kind == "veth":
        return ": its peer has neither an XDP program nor GRO"
    if _may_learn(device):
        return " without a program of its own: make it one of the interfaces"
    return ""


def _is_basic(device: Device) -> bool:
    """Whether its driver may have native mode."""
    return device.features is None or bool(device.features & XdpFeature.BASIC)


def _named(device: Device) -> str:
    return f"{device.name} ({device.kind})" if device.kind else device.name


def _may_learn(device: Device) -> bool:
    """Whether it may take redirected frames once it has a program itself."""
    return device.kind != "veth" and _is_basic(device)


@contextlib.contextmanager
def planned(
    directory: Path,
    spec: BalancerSpec,
    ways_out: Iterable[int],
    before: Mapping[str, Choice],
    *,
    several: bool,
) -> Iterator[Plan]:
    """Choose for all interfaces. What is attached to try it goes when the block ends.

    Args:
        directory: the balancer's, in bpffs.
        spec: the configuration that shall be.
        ways_out: indices of the devices that its backends are reached by.
        before: choices in force.
        several: the balancer's program is one for frames of several buffers already.

    Raises:
        SockwayError: there is no such interface.
        StateError: native mode is asked for and would lose packets, or an interface or a way out
            has no Ethernet.

    """
    ways_out = set(ways_out)
    names = {name: index_of(name) for name in spec.interfaces}
    found = devices({*names.values(), *ways_out})
    outs = sorted((found[i] for i in ways_out if i in found), key=lambda each: each.name)
    ins = {name: found[index] for name, index in names.items() if index in found}
    _refuse_bare(ins.values(), outs)
    plan = Plan({}, several, frozenset(ways_out))
    try:
        if spec.mode == "generic":
            plan.choices = {name: Choice(name, "generic", _BY_HAND) for name in ins}
        else:
            here = set(attachments.attached(directory))
            kept = {
                name: choice
                for name, choice in before.items()
                if spec.mode == "auto" or (name in ins and not _is_basic(ins[name]))
            }
            _choose(plan, here, ins, outs, kept)
        refuse_generic(spec, plan)
        yield plan
    finally:
        for link in plan.trials.values():
            link.close()


def refuse_generic(spec: BalancerSpec, plan: Plan) -> None:
    """Raise StateError where native mode is asked for and can't be."""
    for choice in plan.choices.values():
        if spec.mode == "native" and choice.mode != "native":
            lost = "" if choice.refused_mtu else ", so packets would be lost"
            raise StateError(
                f"{choice.interface} can't be native: {choice.reason}{lost}",
                hint='mode = "auto" takes generic mode there, and native mode where it can',
            )


def _refuse_bare(ins: Iterable[Device], outs: Iterable[Device]) -> None:
    for device in (*ins, *outs):
        if not device.ethernet:
            raise StateError(
                f"{_named(device)} has no Ethernet: the balancer can neither read its frames nor "
                "send any out of it",
                hint="choose another interface, or a route to the backends by another one",
            )


def _choose(
    plan: Plan,
    here: set[str],
    ins: Mapping[str, Device],
    outs: list[Device],
    before: Mapping[str, Choice],
) -> None:
    names = {device.index for device in ins.values()}
    lasting = [each for each in outs if not (each.index in names and _may_learn(each))]
    candidates = []
    for name, device in ins.items():
        known = before.get(name)
        if known and known.refused_mtu == device.mtu and device.mode == "generic":
            plan.choices[name] = known
        elif device.mode is None and not _is_basic(device):
            candidates.append(device)  # its driver says why
        elif (trouble := obstacle(device, lasting)) is not None:
            plan.choices[name] = Choice(name, "generic", trouble)
        else:
            candidates.append(device)
    _try(plan, [each for each in candidates if not (each.name in here and each.mode)])
    chosen = [each for each in candidates if each.name not in plan.choices]
    before_that: list[Device] = []
    while chosen != before_that:  # one that falls to generic mode may be the way out of another
        before_that, chosen = chosen, _still_native(plan, chosen, outs)
    leaving = ", ".join(each.name for each in outs) or "no device yet"
    for device in chosen:
        reason = f"its driver takes it, and backends are reached by {leaving}"
        plan.choices[device.name] = Choice(device.name, "native", reason)


def _still_native(plan: Plan, chosen: list[Device], outs: list[Device]) -> list[Device]:
    """Look again, with programs attached; those that have an obstacle get generic mode."""
    now = devices(each.index for each in (*chosen, *outs))
    kept = []
    for device in chosen:
        trouble = obstacle_now(device, now, outs, chosen, several=plan.several)
        if trouble is None:
            kept.append(device)
            continue
        plan.choices[device.name] = Choice(device.name, "generic", trouble)
        if device.name in plan.trials:
            plan.trials.pop(device.name).close()
    return kept


def obstacle_now(
    device: Device,
    now: Mapping[int, Device],
    outs: Iterable[Device],
    native: Iterable[Device],
    *,
    several: bool,
) -> str | None:
    """Return the obstacle for an interface as all devices are now.

    Args:
        device: the interface, as it was.
        now: all devices that matter, as they are.
        outs: devices that backends are reached by.
        native: interfaces that native mode is still chosen for. Those that wait for it may take
            redirected frames once they have it; others that are generic stay so.
        several: frames may be of several buffers.

    """
    if device.index not in now:
        return "it is gone"
    there = [now[each.index] for each in outs if each.index in now]
    # One that is attached behind the driver is not tried: it would get no packets meanwhile.
    chosen = {each.index for each in native}
    attached_later = {
        each.index
        for each in there
        if each.index in chosen and each.mode == "generic" and _may_learn(each)
    }
    there = [each for each in there if each.index not in attached_later]
    return obstacle(
        now[device.index], there, several=several and device.mtu > attachments.ONE_BUFFER
    )


def _try(plan: Plan, fresh: list[Device]) -> None:
    """Attach a program that passes everything to interfaces that have none of the balancer's."""
    if not fresh:
        return
    with Program.passing() as one, Program.passing(several=True) as many:
        refused = []
        for device in fresh:
            link = None if plan.several else _tried(device, one)
            if link is None:
                refused.append(device)
            else:
                plan.trials[device.name] = link
        for device in refused:
            link = _tried(device, many)
            if link is not None:
                plan.trials[device.name], plan.several = link, True
            else:
                words = refusal(device.index, many if plan.several else one, XdpMode.NATIVE)
                reason = "its driver does not take the program" if words is None else words.message
                plan.choices[device.name] = Choice(device.name, "generic", reason, device.mtu)
        if plan.several:
            for link in plan.trials.values():
                with contextlib.suppress(KernelError):
                    link.update(many)


def wants_several(interfaces: Iterable[str]) -> bool:
    """Return whether a driver takes programs for frames of several buffers only.

    Interfaces are asked that have no program and an MTU that may be too large for one buffer.
    """
    indices = []
    for name in interfaces:
        with contextlib.suppress(SockwayError):  # `planned` says so
            indices.append(index_of(name))
    plan = Plan({}, several=False)
    large = [d for d in devices(indices).values() if d.mtu > _ANY_DRIVER and not d.program]
    try:
        _try(plan, large)
    finally:
        for link in plan.trials.values():
            link.close()
    return plan.several


def _tried(device: Device, program: Program) -> Link | None:
    try:
        return program.attach_xdp(device.index, XdpMode.NATIVE)
    except KernelError:
        return None


def losing(
    interfaces: Iterable[str], ways_out: Iterable[int], *, several: bool, trying: bool = True
) -> dict[str, str]:
    """Return why packets are lost as things stand, by interface, where they are.

    Args:
        interfaces: that the balancer is attached to.
        ways_out: indices of the devices that its backends are reached by.
        several: its program is one for frames of several buffers.
        trying: send a frame to devices that the kernel does not tell of.

    Raises:
        KernelError: the kernel can't be asked.

    """
    indices = {}
    for name in interfaces:
        with contextlib.suppress(SockwayError):  # it is gone
            indices[name] = index_of(name)
    found = devices({*indices.values(), *ways_out})
    outs = [found[index] for index in set(ways_out) if index in found]
    trouble = {}
    for name, index in indices.items():
        device = found.get(index)
        bare = [each for each in outs if not each.ethernet]
        if bare:
            trouble[name] = f"{_named(bare[0])} has no Ethernet"
        elif device is not None and device.mode == "native":
            large = several and device.mtu > attachments.ONE_BUFFER
            words = obstacle(device, outs, several=large, trying=trying)
            if words is not None:
                trouble[name] = words
    return trouble


__all__ = [
    "Choice",
    "Plan",
    "losing",
    "obstacle",
    "obstacle_now",
    "planned",
    "refuse_generic",
    "wants_several",
]
