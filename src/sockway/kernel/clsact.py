"""Programs behind the driver (tc) on kernels without links for them: before Linux 6.6.

The queueing discipline `clsact` has filters for what an interface receives and sends; a filter of
type bpf runs a program whose verdict counts as it is. Three things differ from a link:

- A filter belongs to the interface. It stays when the process ends that made it, so each one has
  a name, and whoever comes next finds it by that name and gives it the new program in one step.
- `clsact` itself is made with the first filter, and taken away when the last one goes.
- Verdicts are numbered alike: "go on" (-1) leads to the next filter, as a link's does.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from sockway.errors import KernelError

if TYPE_CHECKING:
    from sockway.kernel.program import Program

_INGRESS: Final = 0xFFFFFFF2  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) in <linux/pkt_sched.h>
_EGRESS: Final = 0xFFFFFFF3
_ALL: Final = 3  # ETH_P_ALL; pyroute2 puts it into network order
_PRIORITY: Final = 16  # the upper half of what tells of a filter


def attach(ifindex: int, program: Program, name: str, *, incoming: bool = True) -> None:
    """Run a program on what an interface receives or sends, behind the driver.

    Args:
        ifindex: number of the interface.
        program: of type sched_cls.
        name: of the filter; one of this name gets the program in one step.
        incoming: what it receives; else what it sends.

    Raises:
        KernelError: the kernel refused it.

    """
    parent = _parent(incoming=incoming)
    with _netlink(f"attach {name} to interface {ifindex}") as route:
        if not any(q.get_attr("TCA_KIND") == "clsact" for q in route.get_qdiscs(index=ifindex)):
            route.tc("add", "clsact", ifindex)
        priority, handle = _find(route, ifindex, parent, name) or (0, 0)
        route.tc(
            "replace-filter" if priority else "add-filter", "bpf", ifindex, handle,
            fd=program.fd, name=name, parent=parent, prio=priority, protocol=_ALL,
            direct_action=True,
        )  # fmt: skip
        if _find(route, ifindex, parent, name) is None:
            raise KernelError(f"interface {ifindex} took filter {name} and has it not")


def detach(ifindex: int, name: str, *, incoming: bool = True) -> bool:
    """End a filter; return whether there was one. `clsact` goes with the last filter.

    Raises:
        KernelError: the kernel refused it.

    """
    parent = _parent(incoming=incoming)
    with _netlink(f"detach {name} from interface {ifindex}") as route:
        found = _find(route, ifindex, parent, name)
        if found is None:
            return False
        priority, handle = found
        route.tc("del-filter", "bpf", ifindex, handle, parent=parent, prio=priority, protocol=_ALL)
        if not any(_filters(route, ifindex, way) for way in (_INGRESS, _EGRESS)):
            route.tc("del", "clsact", ifindex)
        return True


def is_attached(ifindex: int, name: str, *, incoming: bool = True) -> bool:
    """Whether an interface has a filter of this name."""
    with _netlink(f"ask interface {ifindex} for its filters") as route:
        return _find(route, ifindex, _parent(incoming=incoming), name) is not None


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


__all__ = ["attach", "detach", "is_attached"]
