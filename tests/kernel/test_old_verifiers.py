"""What older verifiers refuse is found here too, before a virtual machine says so."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import hatch_build
from sockway.kernel import BpfObject
from tests.kernel.control_flow import refusal
from tests.machines.page import MOST_VERIFIED

pytestmark = pytest.mark.root

SOURCES = sorted(hatch_build.SOURCES.glob("*.bpf.c"))
JUMP, IF_MORE, MOVE, EXIT = 0x05, 0x25, 0xB7, 0x95


def instructions(*rows: tuple[int, int]) -> bytes:
    """Instructions of (operation, offset)."""
    return b"".join(struct.pack("<BBhi", operation, 0, offset, 0) for operation, offset in rows)


def test_a_loop_that_is_entered_in_its_middle() -> None:
    """Linux 6.1 said exactly this of the walk over IPv6 extension headers."""
    assert (
        refusal(instructions((JUMP, 1), (MOVE, 0), (IF_MORE, -2), (EXIT, 0)))
        == "back-edge from insn 1 to 2"
    )


def test_a_loop_that_is_entered_at_its_head() -> None:
    """It is closed by a jump, which 6.1 takes."""
    assert refusal(instructions((MOVE, 0), (IF_MORE, -2), (EXIT, 0))) is None


def test_other_flows_that_no_kernel_takes() -> None:
    """What nothing leads to, and what leads out of the program."""
    assert refusal(instructions((JUMP, 1), (MOVE, 0), (EXIT, 0))) == "unreachable insn 1"
    assert refusal(instructions((MOVE, 0))) == "jump out of range from insn 0 to 1"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("processor", ["v3", "v4"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name.partition(".")[0])
def test_every_program_at_each_instruction_set(
    source: Path, processor: str, tmp_path: Path
) -> None:
    """It loads here as it is shipped (v3) and for newer kernels; 6.1 takes its control flow.

    v2 does not matter: it has no jumps of 32 bits, and bounds that C compares so are lost.
    """
    target = tmp_path / "object.bpf.o"
    hatch_build.compile_object(source, target, [f"-mcpu={processor}"])
    with BpfObject.open(target) as made:
        made.load()
        for name, program in made.programs.items():
            with made.program(name) as loaded:
                assert loaded.sizes[2] <= MOST_VERIFIED, name
            if processor != "v4":  # whose jumps of 32 bits 6.1 does not know
                assert refusal(program.code()) is None, name
