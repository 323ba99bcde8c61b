"""Bringing the choices of native or generic XDP into force, and what was in force back.

A change of mode takes XDP off the interface for a moment. So only what must change is touched, and
where a change fails, what is written down is what the interfaces really have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from sockway.balancer import attach as attachments
from sockway.balancer.modes import Choice, Plan, losing, refuse_generic
from sockway.balancer.nexthop import index_of
from sockway.balancer.spec import BalancerSpec
from sockway.errors import KernelError, SockwayError
from sockway.kernel import Program
from sockway.kernel.netdev import devices

_LEFT: Final = "a change of its mode failed"


def lower(directory: Path, plan: Plan, program: Program) -> None:
    """Take interfaces to generic mode that must not be native any more; no others are touched.

    Raises:
        KernelError: an interface does not take the program; it is native as before.

    """
    for name, choice in plan.choices.items():
        is_ours = choice.mode == "generic" and name in attachments.attached(directory)
        if is_ours and attachments.mode_of(name) == "native":
            attachments.detach(directory, name)
            try:
                attachments.attach(directory, name, program, "generic")
            except SockwayError:
                with contextlib.suppress(SockwayError):  # rather as it was than not at all
                    attachments.attach(directory, name, program, "native")
                raise


def carry_out(directory: Path, spec: BalancerSpec, plan: Plan, program: Program) -> None:
    """Give all interfaces the program, as it was chosen; all, or those that had it before.

    Raises:
        KernelError: an interface does not take it.
        StateError: native mode is asked for and would lose packets.

    """
    here = attachments.attached(directory)
    try:
        for name, choice in list(plan.choices.items()):
            trial = plan.trials.pop(name, None)
            if trial is None:
                plan.choices[name] = _attach(directory, spec, choice, program)
                continue
            with trial:
                attachments.adopt(directory, name, trial, program)
        # What a driver can do may depend on the programs that are attached now.
        for name, words in losing(plan.choices, plan.ways_out, several=plan.several).items():
            plan.choices[name] = Choice(name, "generic", words)
        refuse_generic(spec, plan)
        lower(directory, plan, program)
    except BaseException:
        for name in set(attachments.attached(directory)) - set(here):
            attachments.detach(directory, name)
        raise


def _attach(directory: Path, spec: BalancerSpec, choice: Choice, program: Program) -> Choice:
    """Attach without a trial, or give what is attached this program; what it became."""
    name = choice.interface
    mode = attachments.mode_of(name)
    if mode not in {None, choice.mode} and name in attachments.attached(directory):
        attachments.detach(directory, name)
    try:
        attachments.attach(directory, name, program, choice.mode)
    except KernelError as error:
        if choice.mode == "generic":
            raise
        if spec.mode == "auto" or mode == "generic":
            attachments.attach(directory, name, program, "generic")
        if spec.mode == "native":
            raise
        return Choice(name, "generic", error.message, _mtu(name))
    return choice


def _mtu(name: str) -> int:
    found = devices([index_of(name)])
    return next((device.mtu for device in found.values()), 0)


def real_modes(directory: Path) -> dict[str, str | None]:
    """Return how XDP runs on each interface that the balancer is attached to; None: it is gone."""
    found: dict[str, str | None] = {}
    for name in attachments.attached(directory):
        found[name] = None
        with contextlib.suppress(SockwayError):
            found[name] = attachments.mode_of(name)
    return found


def put_back(directory: Path, stood: Mapping[str, str | None], program: Program) -> None:
    """Attach as it was, as far as the kernel lets.

    Args:
        directory: the balancer's, in bpffs.
        stood: what `real_modes` returned.
        program: what is attached.

    """
    for name in set(attachments.attached(directory)) - set(stood):
        attachments.detach(directory, name)
    now = real_modes(directory)
    for name, mode in stood.items():
        if mode is None or now.get(name) == mode:
            continue
        attachments.detach(directory, name)
        with contextlib.suppress(SockwayError):  # one that takes no program any more
            attachments.attach(directory, name, program, "auto" if mode == "native" else "generic")


def in_force(directory: Path, *said: Mapping[str, Choice]) -> dict[str, Choice]:
    """Return the choices that agree with what interfaces have.

    Args:
        directory: the balancer's, in bpffs.
        said: choices; the earlier ones count if they are so.

    """
    found = {}
    for name, mode in real_modes(directory).items():
        known = [choices[name] for choices in said if name in choices]
        so = [choice for choice in known if choice.mode == mode]
        if mode in {"native", "generic"}:
            here: Literal["native", "generic"] = "native" if mode == "native" else "generic"
            found[name] = so[0] if so else Choice(name, here, _LEFT)
        elif known:
            found[name] = known[0]
    return found


__all__ = ["carry_out", "in_force", "lower", "put_back", "real_modes"]
