"""Attaching the program to interfaces, so that it outlives the process and is never missing.

An attachment is a pinned link. A process that starts finds it, and gives it another program in one
step; no packet meets none.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal

from sockway.balancer.nexthop import index_of
from sockway.errors import FeatureError, KernelError, StateError
from sockway.kernel import Link, Program, XdpMode, clsact
from sockway.kernel.netdev import devices, refusal

Mode = Literal["auto", "native", "generic"]

_PREFIX: Final = "link-"
_FILTER_PREFIX: Final = "filter-"
_MADE: Final = "m"
"""Behind the interface's number: `clsact` was made for this filter."""
ONE_BUFFER: Final = 3000
"""Octets of MTU that a frame is one buffer up to, whichever driver: a page less what it keeps."""
_SIOCGIFMTU: Final = 0x8921
_MODES: Final[dict[str, tuple[XdpMode, ...]]] = {
    "auto": (XdpMode.NATIVE, XdpMode.GENERIC),
    "native": (XdpMode.NATIVE,),
    "generic": (XdpMode.GENERIC,),
}


def attached(directory: Path) -> list[str]:
    """Interfaces that a balancer is attached to, sorted."""
    noted = [note.name.split("-", 2)[2] for note in directory.glob(f"{_FILTER_PREFIX}*")]
    filtered = [name.replace("@", ".") for name in noted]
    return sorted({*_named(directory, _PREFIX), *filtered})


def _named(directory: Path, prefix: str) -> list[str]:
    pins = directory.glob(f"{prefix}*")
    return [pin.name.removeprefix(prefix).replace("@", ".") for pin in pins]


def _pin(directory: Path, interface: str) -> Path:
    """Bpffs takes no dots in names, and a VLAN's interface has one; none has an @."""
    return directory / f"{_PREFIX}{interface.replace('.', '@')}"


def _flat(interface: str) -> str:
    return interface.replace(".", "@")


def _filters(directory: Path, interface: str) -> list[Path]:
    """Return the notes of filters on an interface of this name: pins of their programs."""
    notes = directory.glob(f"{_FILTER_PREFIX}*")
    return [note for note in notes if note.name.split("-", 2)[2] == _flat(interface)]


def _index_of_filter(note: Path) -> int:
    return int(note.name.split("-")[1].removesuffix(_MADE))


def _filter(directory: Path) -> str:
    return f"sockway-{directory.name.removeprefix('@')}"


def has_jumbo(interfaces: Iterable[str], mode: Mode) -> bool:
    """Whether frames of an interface may be several buffers, which a program has to be made for.

    Drivers refuse other programs then. Generic XDP makes one buffer of each frame.
    """
    if mode == "generic":
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return any(_mtu(sock, interface) > ONE_BUFFER for interface in interfaces)


def _mtu(sock: socket.socket, interface: str) -> int:
    request = struct.pack("16s24x", interface.encode())
    try:
        answer = fcntl.ioctl(sock, _SIOCGIFMTU, request)
    except OSError:  # it is gone
        return 0
    return int(struct.unpack_from("16xi", answer)[0])


def check(directory: Path, interfaces: Iterable[str]) -> None:
    """See that interfaces are there and free, before anything is changed.

    Raises:
        SockwayError: there is no such interface.
        StateError: another XDP program is there.

    """
    here = set(attached(directory))
    for interface in interfaces:
        index = index_of(interface)
        if interface not in here:
            _free(interface, index)


def _free(interface: str, index: int) -> None:
    other = xdp_program(index)
    if other:
        raise StateError(
            f"{interface} has another XDP program (id {other})",
            hint=f"take it off: ip link set dev {interface} xdp off; or pin it and have it called "
            "for what is for no VIP: next = PIN",
        )


def attach(directory: Path, interface: str, program: Program, mode: Mode) -> str:
    """Attach the program to an interface, or give the attachment there this program.

    Returns:
        `native`, `generic`, or `kept` where the attachment was there.

    Raises:
        SockwayError: there is no such interface.
        StateError: another XDP program is there.
        KernelError: the interface does not take one, in this mode.

    """
    pin = _pin(directory, interface)
    if pin.exists():
        with Link.from_pin(pin) as link, contextlib.suppress(KernelError):
            link.update(program)
            return "kept"
    # The interface was removed meanwhile, and with it what was attached; or it is tc's.
    detach(directory, interface)
    index = index_of(interface)
    _free(interface, index)
    for kind in _MODES[mode]:
        try:
            with program.attach_xdp(index, kind) as link:
                link.pin(pin)
        except KernelError:
            continue
        return "native" if kind == XdpMode.NATIVE else "generic"
    # A link is refused with a number alone; the driver's own words come by netlink.
    refused = refusal(index, program, _MODES[mode][-1])
    raise KernelError(
        f"{interface} takes no XDP program: {refused.message if refused else 'it was refused'}",
        hint='try mode = "generic"' if mode == "native" else None,
    )


def adopt(directory: Path, interface: str, link: Link, program: Program) -> None:
    """Pin an attachment of another program, and give it this one in one step.

    Raises:
        KernelError: the interface does not take it.

    """
    detach(directory, interface)  # of an interface of this name that is gone
    try:
        link.update(program)
    except KernelError as error:
        raise KernelError(f"{interface} takes no XDP program: {error.message}") from error
    link.pin(_pin(directory, interface))


def attach_tc(directory: Path, interface: str, program: Program) -> str:
    """Attach a tc program to what an interface receives, or give the attachment there this one.

    Kernels before 6.6 have no links for such programs: a filter of `clsact` is made there, and
    the program pinned beside the links, so that `attached` and `detach` know of it.

    Returns:
        How: `kept`, `tcx`, or `clsact`.

    Raises:
        SockwayError: there is no such interface.
        KernelError: the kernel refused it.

    """
    pin = _pin(directory, interface)
    if pin.exists():
        with Link.from_pin(pin) as link, contextlib.suppress(KernelError):
            link.update(program)
            return "kept"
        detach(directory, interface)  # an XDP program's, or of an interface that is gone
    index = index_of(interface)
    try:
        with program.attach_tcx(index) as link:
            link.pin(pin)
    except FeatureError:
        _attach_filter(directory, interface, index, program)
        return "clsact"
    return "tcx"


def _attach_filter(directory: Path, interface: str, index: int, program: Program) -> None:
    """Make a filter of `clsact`, with the program's pin as the note of it.

    The note is there before the filter is, and says by its name which interface it is on, also if
    that gets another name, and whether `clsact` was made for it.
    """
    before = _filters(directory, interface)
    note = next((each for each in before if _index_of_filter(each) == index), None)
    for stale in before:
        if stale != note:
            stale.unlink()  # of an interface that is gone, and made anew
    fresh = note or directory / f"{_FILTER_PREFIX}{index}-{_flat(interface)}"
    if note is None:
        program.pin(fresh)
    try:
        made = clsact.attach(index, program, _filter(directory))
    except BaseException:
        if note is None:
            fresh.unlink()
        raise
    if made:
        fresh.rename(directory / f"{_FILTER_PREFIX}{index}{_MADE}-{_flat(interface)}")


def detach(directory: Path, interface: str) -> None:
    """End an attachment; it is no error if there is none, or if the interface is gone.

    Raises:
        KernelError: a filter can't be taken off; it is still noted.

    """
    pin = _pin(directory, interface)
    if pin.exists():
        with Link.from_pin(pin) as link:
            pin.unlink()
            with contextlib.suppress(KernelError):
                link.detach()
    for note in _filters(directory, interface):
        made = note.name.split("-")[1].endswith(_MADE)
        clsact.detach(_index_of_filter(note), _filter(directory), with_clsact=made)
        note.unlink()


def update_all(directory: Path, program: Program) -> None:
    """Give all attachments this program, one step each."""
    for link in _links(directory):
        with contextlib.suppress(KernelError):  # of an interface that is gone
            link.update(program)


def _links(directory: Path) -> Iterator[Link]:
    for interface in _named(directory, _PREFIX):
        with Link.from_pin(_pin(directory, interface)) as link:
            yield link


def xdp_program(index: int) -> int:
    """Number of the XDP program on an interface; 0: none."""
    found = devices([index]).get(index)
    return found.program if found else 0


def mode_of(interface: str) -> str | None:
    """Return how XDP runs on an interface: `native`, `generic`, `offloaded`; None: it does not.

    Raises:
        SockwayError: there is no such interface.

    """
    index = index_of(interface)
    found = devices([index]).get(index)
    return found.mode if found else None


__all__ = [
    "ONE_BUFFER",
    "Mode",
    "adopt",
    "attach",
    "attach_tc",
    "attached",
    "check",
    "detach",
    "has_jumbo",
    "mode_of",
    "update_all",
    "xdp_program",
]
