"""How stamps look: which kinds of options there can be, and those in fleets of others.

Katran's balancers read the option of kind 0xB7, six octets, whose server ID is the client host's
32-bit number as its memory has it: little-endian on the machines that there are. Servers tell it by
kind 0xB6. Source: facebookincubator/katran, `katran/lib/bpf/pckt_parsing.h` (`parse_hdr_opt`) and
`katran/tpr/bpf/tcp_pkt_router.bpf.c`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

Profile = Literal["katran"] | None

SHARED: Final = frozenset({253, 254})
"""Kinds that experiments share, told apart by a number (RFC 6994)."""
TAKEN: Final = {
    2: "segment size", 3: "window scale", 4: "SACK", 5: "SACK", 8: "timestamps", 19: "MD5",
    29: "TCP-AO", 30: "MPTCP", 34: "Fast Open", 69: "encryption", 172: "AccECN", 174: "AccECN",
}  # fmt: skip
"""Kinds that the kernel reads or writes itself: it would refuse a stamp, or take it for its own."""
TAKEN_NUMBERS: Final = {0xF989: "Fast Open", 0xE2D4: "SMC"}
"""The same of experiments."""
WAY: Final = (
    "say which kind of TCP option it is, the same on all hosts and balancers of the fleet, "
    'or profile = "katran", which has kinds of its own'
)
"""What to do where no kind is given: there is none that would be right everywhere."""


def with_profile(data: Any, kinds: Mapping[str, int], experiments: tuple[str, ...]) -> Any:
    """A configuration with what its profile says filled in.

    Args:
        data: as it was written.
        kinds: names and values of its fields for kinds, in Katran's fleets.
        experiments: names of its fields for numbers of experiments, which these have not.

    Raises:
        ValueError: a field is given that says otherwise; it names the field.

    """
    if not isinstance(data, dict) or data.get("profile") != "katran":
        return data
    wanted: dict[str, Any] = {**kinds, "byte_order": "little"}
    for name, value in wanted.items():
        if data.get(name, value) != value:
            message = f"profile katran has {name} = {value!r}, not {data[name]!r}"
            raise ValueError(message)
    for name in experiments:
        if data.get(name) is not None:
            message = f"profile katran has no {name}: leave it or the profile out"
            raise ValueError(message)
    return data | wanted


def check_kind(kind: int) -> int:
    """A kind that an option of ours can have.

    Raises:
        ValueError: the kernel has it for another.

    """
    if kind in TAKEN:
        message = f"kind {kind} is the kernel's own ({TAKEN[kind]}): take one that nobody uses"
        raise ValueError(message)
    return kind


def check_experiment(name: str, kind: int, experiment: int | None) -> None:
    """That shared kinds have a number, and others none.

    Args:
        name: of the field that has the number.
        kind: of the option.
        experiment: the number.

    Raises:
        ValueError: it is not so, or the number is taken.

    """
    if kind in SHARED and experiment is None:
        message = f"kind {kind} is shared by experiments (RFC 6994) and wants {name}, a number"
        raise ValueError(message)
    if kind not in SHARED and experiment is not None:
        message = f"{name} is for kinds 253 and 254 (RFC 6994), not for {kind}: leave it out"
        raise ValueError(message)
    if experiment in TAKEN_NUMBERS:
        message = f"{name} {experiment:#06x} is the kernel's own ({TAKEN_NUMBERS[experiment]})"
        raise ValueError(message)


__all__ = ["SHARED", "WAY", "Profile", "check_experiment", "check_kind", "with_profile"]
