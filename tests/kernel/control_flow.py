"""The rule of Linux 6.1 about loops, over a program's instructions, without such a kernel.

Before it looks at values the verifier walks the control flow, depth first. Newer kernels leave
loops to the rest of the verifier. 6.1 does so for an edge that a *jump* makes; an instruction
that just falls through to one that is being walked is refused: "back-edge from insn 1 to 2".
Compilers make such code when they enter a loop in its middle: the loop's last instruction before
the middle falls into it. `make kernels` asks the kernel itself; this needs two seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_JUMPS = (5, 6)  # BPF_JMP and BPF_JMP32, the classes of <linux/bpf_common.h>
_CALL, _EXIT, _ALWAYS = 0x8, 0x9, 0x0
_PSEUDO_CALL, _PSEUDO_FUNC = 1, 4
_WIDE = 0x18  # a constant of 64 bits, two instructions long


def _edges(code: bytes, at: int) -> Iterator[tuple[int, bool]]:
    """Where an instruction leads, each with whether a loop may be closed so, in 6.1's order."""
    operation, registers, offset, constant = struct.unpack_from("<BBhi", code, 8 * at)
    source = registers >> 4
    if operation == _WIDE and source == _PSEUDO_FUNC:
        yield at + 1, False
        yield at + 1 + constant, True
    elif operation & 7 not in _JUMPS:
        yield at + 1, False
    elif operation >> 4 == _CALL:
        yield at + 1, False
        if source == _PSEUDO_CALL:
            yield at + 1 + constant, False
    elif operation >> 4 == _ALWAYS:
        yield at + 1 + offset, True
    elif operation >> 4 != _EXIT:
        yield at + 1, True
        yield at + 1 + offset, True


def refusal(code: bytes) -> str | None:
    """Return what Linux 6.1 says of a program's control flow; None: it takes it.

    Args:
        code: the linked instructions, eight octets each.

    """
    count = len(code) // 8
    done, path = set(), {0: _edges(code, 0)}
    while path:
        at = next(reversed(path))
        step = next(path[at], None)
        if step is None:
            done.add(at)
            del path[at]
            continue
        to, may_close = step
        if not 0 <= to < count:
            return f"jump out of range from insn {at} to {to}"
        if to in path and not may_close:
            return f"back-edge from insn {at} to {to}"
        if to not in path and to not in done:
            path[to] = _edges(code, to)
    unreached = set(range(count)) - done
    return f"unreachable insn {min(unreached)}" if unreached else None
