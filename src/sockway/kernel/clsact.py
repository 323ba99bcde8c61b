"""Programs behind the driver (tc) on kernels without links for them: before Linux 6.6.

The queueing discipline `clsact` has filters for what an interface receives and sends; a filter of
type bpf runs a program whose verdict counts as it is. Four things differ from a link:

- A filter belongs to the interface. It stays when the process ends that made it, so each one has
  a name, and whoever comes next finds it by that name and gives it the new program in one step.
- The discipline is made with the first filter. Only who made it may take it away, and only when
  no filter is left: an administrator's may be there for a reason.
- Verdicts are numbered alike: "go on" (-1) leads to the next filter, as a link's does.
- pyroute2 runs an event loop of its own, which can't be done inside another one. So each call
  works in a thread, which is in the caller's network namespace as every new thread is.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sockway.errors import KernelError

if TYPE_CHECKING:
    from sockway.kernel.program import Program

T = TypeVar("T")

_INGRESS: Final = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) in <linux/pkt_sched.h>
_EGRESS: Final = 0xFFFFFFF3
_ALL: Final = 3  # ETH_P_ALL; pyroute2 puts it into network order
_PRIORITY: Final = 16  # the upper half of what tells of a filter


def attach(ifindex: int, program: Program, name: str, *, incoming: bool = True) -> bool:
    """Run a program on what an interface receives or sends, behind the driver.

    Args:
        ifindex: number of the interface.
        program: of type sched_cls.
        name: of the filter; one of this name gets the program in one step.
        incoming: what it receives; else what it sends.

    Returns:
        Whether `clsact` was made for it; tell `detach`.

    Raises:
        KernelError: the kernel refused it; nothing is left of it.

    """
    what = f"attach {name} to interface {ifindex}"
    return _aside(what, lambda route: _attach(route, ifindex, program, name, incoming=incoming))


def _attach(route: Any, ifindex: int, program: Program, name: str, *, incoming: bool) -> bool:
    parent = _parent(incoming=incoming)
    made = _make_room(route, ifindex, incoming=incoming)
    try:
        priority, handle = _find(route, ifindex, parent, name) or (0, 0)
        route.tc(
            "replace-filter" if priority else "add-filter", "bpf", ifindex, handle,
            fd=program.fd, name=name, parent=parent, prio=priority, protocol=_ALL,
            direct_action=True,
        )  # fmt: skip
    except BaseException:
        if made:
            _take_away(route, ifindex)
        raise
    if _find(route, ifindex, parent, name) is None:
        raise KernelError(f"interface {ifindex} took filter {name} and has it not")
    return made


def _make_room(route: Any, ifindex: int, *, incoming: bool) -> bool:
    """Have a discipline with filters; return whether it was made."""
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - slow to import

    kinds = {each.get_attr("TCA_KIND") for each in route.get_qdiscs(index=ifindex)}
    # The older discipline `ingress` holds filters for what is received, too.
    if "clsact" in kinds or (incoming and "ingress" in kinds):
        return False
    if "ingress" in kinds:
        raise KernelError(
            f"interface {ifindex} has the discipline `ingress`, which has no filters for what "
            "is sent",
            hint="put clsact in its place: tc qdisc del dev DEVICE ingress; "
            "tc qdisc add dev DEVICE clsact",
        )
    try:
        route.tc("add", "clsact", ifindex)
    except NetlinkError as error:
        if error.code != errno.EEXIST:  # another process was quicker
            raise
        return False
    return True


def detach(ifindex: int, name: str, *, incoming: bool = True, with_clsact: bool = False) -> bool:
    """End a filter; return whether there was one.

    Args:
        ifindex: number of the interface; one that is gone has none.
        name: of the filter.
        incoming: of what the interface receives; else of what it sends.
        with_clsact: the caller made `clsact`: it goes, too, when no filter is left.

    Raises:
        KernelError: the kernel refused it.

    """

    def work(route: Any) -> bool:
        parent = _parent(incoming=incoming)
        if not any(link["index"] == ifindex for link in route.get_links()):
            return False
        found = _find(route, ifindex, parent, name)
        if found is not None:
            priority, handle = found
            route.tc(
                "del-filter", "bpf", ifindex, handle, parent=parent, prio=priority, protocol=_ALL
            )
        if with_clsact:
            _take_away(route, ifindex)
        return found is not None

    return _aside(f"detach {name} from interface {ifindex}", work)


def _take_away(route: Any, ifindex: int) -> None:
    if not any(_filters(route, ifindex, way) for way in (_INGRESS, _EGRESS)):
        route.tc("del", "clsact", ifindex)


def is_attached(ifindex: int, name: str, *, incoming: bool = True) -> bool:
    """Whether an interface has a filter of this name."""
    parent = _parent(incoming=incoming)
    return _aside(
        f"ask interface {ifindex} for its filters",
        lambda route: _find(route, ifindex, parent, name) is not None,
    )


def _parent(*, incoming: bool) -> int:
    return _INGRESS if incoming else _EGRESS


def _filters(route: Any, ifindex: int, parent: int) -> list[Any]:
    # Each priority has an entry of its own before its filters; that one has no handle.
    return [f for f in route.get_filters(index=ifindex, parent=parent) if f["handle"]]


def _find(route: Any, ifindex: int, parent: int, name: str) -> tuple[int, int] | None:
    """Return priority and handle of the filter of this name; None: there is none."""
    for found in _filters(route, ifindex, parent):
        options = found.get_attr("TCA_OPTIONS")
        if found.get_attr("TCA_KIND") == "bpf" and options.get_attr("TCA_BPF_NAME") == name:
            return int(found["info"]) >> _PRIORITY, int(found["handle"])
    return None


def _aside(what: str, work: Callable[[Any], T]) -> T:
    """Do something with rtnetlink in a thread of its own."""

    def run() -> T:
        with _netlink(what) as route:
            return work(route)

    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(run).result()


@contextlib.contextmanager
def _netlink(what: str) -> Iterator[Any]:
    from pyroute2 import IPRoute  # noqa: PLC0415 - slow to import
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        reason = errno.errorcode.get(error.code, str(error.code))
        raise KernelError(f"can't {what}: {reason}: {error.args[-1]}") from error
    except OSError as error:
        raise KernelError(f"can't {what}: {error.strerror}") from error


__all__ = ["attach", "detach", "is_attached"]
