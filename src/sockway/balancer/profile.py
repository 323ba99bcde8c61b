"""How stamps look in fleets of others.

Katran's balancers read the option of kind 0xB7, six octets, whose server ID is the client host's
32-bit number as its memory has it: little-endian on the machines that there are. Servers tell it by
kind 0xB6. Source: facebookincubator/katran, `katran/lib/bpf/pckt_parsing.h` (`parse_hdr_opt`) and
`katran/tpr/bpf/tcp_pkt_router.bpf.c`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Profile = Literal["katran"] | None


def with_profile(data: Any, kinds: Mapping[str, int]) -> Any:
    """A configuration with what its profile says filled in.

    Args:
        data: as it was written.
        kinds: names and values of its fields for kinds, in Katran's fleets.

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
    return data | wanted


__all__ = ["Profile", "with_profile"]
