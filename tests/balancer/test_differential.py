"""The program and its model agree on every packet that they are given."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sockway.kernel import Program
from sockway.wire import balancer_model as model
from tests.balancer import differential
from tests.balancer.frames import LONGEST, SHORTEST, seeds

pytestmark = pytest.mark.root

PACKETS = int(os.environ.get("SOCKWAY_PACKETS", "1000000"))


def test_program_and_model_agree_on_a_million_packets() -> None:
    """Generated and spoiled frames, in each memory; each run has frames of its own."""
    seed = int(os.environ.get("SOCKWAY_SEED", str(int(time.time()))))
    outcomes = differential.run(PACKETS, seed)
    # Each way that a packet can go was gone by many.
    missing = {
        "by_ring", "by_table", "new_flow", "by_previous", "over_limit", "icmp_error", "to_local",
        "echoed", "too_big", "too_big_dropped", "fragment", "ttl_expired", "no_backend", "no_route",
        "malformed", "stored", "by_stamp", "foreign_stamp", "bad_options",
    } - {outcome for outcome, number in outcomes.items() if number > PACKETS // 10_000}  # fmt: skip
    assert not missing


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[differential.Setup, Program]]:
    """A balancer, its model, and its program."""
    with (
        differential.set_up() as setup,
        setup.balancer._state.program("balancer") as program,
    ):
        yield setup, program


EDITS = st.lists(
    st.tuples(st.integers(0, 120), st.binary(max_size=6), st.integers(0, 6)), max_size=4
)


@settings(
    max_examples=3000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(index=st.integers(min_value=0), edits=EDITS, cut=st.none() | st.integers(SHORTEST, 200))
def test_and_on_what_hypothesis_thinks_of(
    both: tuple[differential.Setup, Program],
    index: int,
    edits: list[tuple[int, bytes, int]],
    cut: int | None,
) -> None:
    """Octets put in and taken out anywhere, and the smallest example of what differs."""
    setup, program = both
    frame = bytearray(seeds()[index % len(seeds())].frame)
    for at, octets, taken in edits:
        frame[at : at + taken] = octets
    frame = frame[:cut].ljust(SHORTEST, b"\0")
    differential.compare(setup, program, bytes(frame[:LONGEST]), explained=True)


def test_a_difference_is_found(both: tuple[differential.Setup, Program]) -> None:
    """A model that counts one octet more of a tunnel disagrees, with the packet in its words."""
    setup, program = both
    configuration = setup.model.configuration
    changed = {
        number: replace(backend, next_hop=b"\2\3\4\5\6\7")
        for number, backend in configuration.backends.items()
    }
    wrong = model.Model(replace(configuration, backends=changed))
    with pytest.raises(differential.DifferenceError, match="frame: "):
        compare_all(differential.Setup(setup.balancer, wrong, setup.spec), program)


def compare_all(setup: differential.Setup, program: Program) -> None:
    """All frames as they are."""
    for seed in seeds():
        differential.compare(setup, program, seed.frame)
