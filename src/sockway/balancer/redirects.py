"""Frames that the kernel lost after the balancer's program sent them: counted, and tried.

XDP tells a program's wish and not its outcome: the counters of the packet path say that a packet
was sent also where the other device did not take it. Only tracepoints say more; programs on them
count what belongs to this balancer, see bpf/redirects.bpf.c. They are pinned beside the balancer,
in a directory that is named after their build, so they outlive processes and go with the balancer:

    redirects-<digest>/         link-<tracepoint> programs devices failures sum
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sockway.errors import KernelError, NotFoundError
from sockway.kernel import BpfObject, Link, Map, ObjectLayout, Program, current_netns_cookie
from sockway.kernel.netdev import Device

LAYOUT: Final = ObjectLayout("redirects")
_PREFIX: Final = "redirects-"
_MAPS: Final = ("programs", "devices", "failures", "sum")
_TRACEPOINTS: Final = {
    "on_redirect_err": "xdp_redirect_err",
    "on_exception": "xdp_exception",
    "on_devmap_xmit": "xdp_devmap_xmit",
    "on_bulk_tx": "xdp_bulk_tx",
}
_EXPERIMENT: Final = 0x88B5  # of IEEE 802, for local experiments: no host takes it for its own
_LEAST_FRAME: Final = 60


@dataclass(frozen=True)
class Failure:
    """Frames that were lost on one way, for one reason, since the balancer was made."""

    way_in: str
    """The interface that they came in by."""
    way_out: str
    """The interface that was to send them."""
    reason: str
    """The kernel's, as `EOPNOTSUPP: Operation not supported`; empty if it does not say."""
    frames: int


@dataclass(frozen=True)
class Failures:
    """All that were lost since the balancer was made."""

    frames: int
    ways: tuple[Failure, ...]


def watch(directory: Path, programs: Iterable[int], interfaces: Iterable[str]) -> None:
    """Count what these programs lose, on these interfaces, from now on, and nothing else.

    Args:
        directory: the balancer's, in bpffs.
        programs: their numbers in the kernel.
        interfaces: of this network namespace.

    Raises:
        KernelError: the kernel can't trace.

    """
    place = directory / f"{_PREFIX}{LAYOUT.digest:016x}"
    if not (place / "sum").exists():  # it is pinned last
        _set_up(directory, place)
    _set(place / "programs", None, {_octets(each): each for each in programs})
    _set(place / "devices", LAYOUT.struct("redirect_device"), _devices(interfaces))


def _devices(interfaces: Iterable[str]) -> dict[bytes, Any]:
    cookie, kind = current_netns_cookie(), LAYOUT.struct("redirect_device")
    found = {}
    for name in interfaces:
        with contextlib.suppress(OSError):  # it is gone
            key = kind(cookie, socket.if_nametoindex(name), 0)
            found[bytes(key)] = key
    return found


def _set_up(directory: Path, place: Path) -> None:
    """Load the programs, over the maps of an earlier build if there are any, and pin all."""
    before = _place(directory)
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(BpfObject.open(LAYOUT.source, name="redirects"))
        if before is not None:
            for name in _MAPS:
                with contextlib.suppress(KernelError, NotFoundError):  # it was laid out otherwise
                    made.maps[name].reuse(stack.enter_context(Map.from_pin(before / name)))
        links = _attached(stack, made)
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
        place.mkdir(mode=0o700)
        for tracepoint, link in links.items():
            link.pin(place / f"link-{tracepoint}")
        for name in _MAPS:
            with made.map(name) as held:
                held.pin(place / name)


def _attached(stack: contextlib.ExitStack, made: BpfObject) -> dict[str, Link]:
    """Load the programs and attach them, as long as the stack lasts."""
    made.load()
    links = {}
    for program, tracepoint in _TRACEPOINTS.items():
        with made.program(program) as opened:
            links[tracepoint] = stack.enter_context(opened.attach_tracepoint(tracepoint))
    return links


def obstacles(devices: Iterable[Device]) -> dict[int, str]:
    """Try which devices take redirected frames: send one frame to each.

    For kernels that do not tell it. The frame goes to the device's own address with a type that
    is reserved for experiments, so nobody takes it.

    Returns:
        The kernel's reason by the device's index, where it did not take the frame.

    Raises:
        KernelError: the kernel can't trace, so it can't be seen.

    """
    found = {}
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(BpfObject.open(LAYOUT.source, name="redirects"))
        _attached(stack, made)
        programs, watched, lost = (made.map(name) for name in ("programs", "devices", "failures"))
        for opened in (programs, watched, lost):
            stack.callback(opened.close)
        for key in _devices(("lo",)).values():  # the frames of a test run come from there
            watched[key] = 1
        for device in devices:
            frame = 2 * device.address + struct.pack("!H", _EXPERIMENT)
            with Program.redirecting(device.index) as program:
                programs[program.id] = 1
                program.test_run(frame.ljust(_LEAST_FRAME, b"\0"), live_frames=True, batch_size=1)
            reasons = {int(key.way_out): int(key.error) for key, _ in lost.items()}
            if device.index in reasons:
                found[device.index] = reason_of(reasons[device.index])
    return found


def _place(directory: Path) -> Path | None:
    found = [each for each in directory.glob(f"{_PREFIX}*") if (each / "sum").exists()]
    return found[0] if found else None


def _set(pin: Path, kind: Any, wanted: Mapping[bytes, Any]) -> None:
    """Have a map hold these keys alone; those that stay are never missing."""
    with Map.from_pin(pin, key_type=kind) as held:
        here = {_octets(key): key for key in list(held)}
        for octets, key in wanted.items():
            if octets not in here:
                held[key] = 1
        for octets, key in here.items():
            if octets not in wanted:
                held.pop(key, None)


def _octets(key: Any) -> bytes:
    return struct.pack("=I", key) if isinstance(key, int) else bytes(key)


def read_failures(directory: Path) -> Failures | None:
    """Return what was lost since the balancer was made; None: it is not counted."""
    place = _place(directory)
    if place is None:
        return None
    names = dict(socket.if_nameindex())
    with Map.from_pin(place / "sum") as held:
        frames = sum(int(cpu) for cpu in held[0])
    kind = LAYOUT.struct("redirect_failure")
    with Map.from_pin(place / "failures", key_type=kind) as held:
        ways = [
            Failure(
                _named(names, int(key.way_in)),
                _named(names, int(key.way_out)),
                reason_of(int(key.error)),
                sum(int(cpu) for cpu in counts),
            )
            for key, counts in held.items()
        ]
    return Failures(frames, tuple(sorted(ways, key=lambda each: -each.frames)))


def _named(names: dict[int, str], index: int) -> str:
    return names.get(index) or (f"interface {index}" if index else "unknown")


def reason_of(number: int) -> str:
    """Return the words for an errno; empty for 0."""
    return f"{errno.errorcode.get(number, number)}: {os.strerror(number)}" if number else ""


__all__ = ["Failure", "Failures", "obstacles", "read_failures", "reason_of", "watch"]
