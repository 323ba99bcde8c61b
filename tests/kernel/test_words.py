from __future__ import annotations

import signal
import time

import pytest

from sockway.errors import KernelError
from sockway.kernel import BpfObject, Map, MapType, RingBuffer
from sockway.kernel.ffi import take_words
from tests.kernel.conftest import Compile

pytestmark = pytest.mark.root


def test_an_error_quotes_libbpf_on_what_failed_alone(
    shapes: BpfObject, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message names the map that could not be made, not those that could; nothing is printed.

    libbpf tells both, to stderr if it is let.
    """
    shapes.maps["arrays"].set_max_entries(1 << 31)
    with pytest.raises(KernelError, match=r"map 'arrays': failed to create") as caught:
        shapes.load()
    assert "'cells'" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_words_of_one_call_are_not_told_of_the_next(shapes: BpfObject, compiled: Compile) -> None:
    """What libbpf said of a failure is gone when something else fails."""
    shapes.maps["arrays"].set_max_entries(1 << 31)
    with pytest.raises(KernelError, match="arrays"):
        shapes.load()
    assert take_words() == ""
    with BpfObject.open(compiled("shapes"), name="other") as other:
        other.maps["points"].set_max_entries(1 << 31)
        with pytest.raises(KernelError, match="points") as caught:
            other.load()
    assert "arrays" not in str(caught.value)


def test_a_signal_ends_the_wait_for_records(loaded: BpfObject) -> None:
    """The process's handler runs, and `poll` returns: no records, no error."""
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _frame: seen.append(number))
    try:
        with loaded.map("events") as events, RingBuffer(events, lambda _record: None) as ring:
            began = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert ring.poll(20.0) == 0
            assert time.monotonic() - began < 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == [signal.SIGALRM]


def test_deleting_what_is_not_there_takes_time_that_grows_with_the_keys() -> None:
    """Not with their square: each missing key costs a call, and no copy of the others."""

    def seconds(count: int) -> float:
        began = time.process_time()
        numbers.delete_batch(range(count))
        return time.process_time() - began

    with Map.create(MapType.HASH, key_size=4, value_size=4, max_entries=8) as numbers:
        seconds(1000)
        # 16 times as many keys; by squares 256 times as long.
        assert min(seconds(16_000) for _ in range(2)) < 80 * min(seconds(1000) for _ in range(3))
