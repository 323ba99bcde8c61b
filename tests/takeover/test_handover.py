"""One successor at a time; VIPs that change; tables that grow no longer than their flows live."""

from __future__ import annotations

import socket
import time
from itertools import pairwise
from pathlib import Path

import pytest

from sockway.takeover.agent import Agent, counters
from sockway.takeover.forward import Address, Owner, Peers
from sockway.takeover.handover import ask_for_sockets, who_serves
from sockway.takeover.routing import Table
from sockway.takeover.starting import vip_key
from tests.takeover.echoes import Echoes, answerer, says

PEER: Address = ("2001:db8::7", 40_000, 0, 0)


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        """Some time."""
        self.now = 1000.0

    def __call__(self) -> float:
        """What it is."""
        return self.now


def _tables(count: int, clock: Clock) -> list[Table[Address]]:
    return [Table(Owner(number, 0), 120, clock) for number in range(1, count + 1)]


def _pass_on(tables: list[Table[Address]], clock: Clock, seconds: float) -> list[int]:
    """Release by release, with a pause before each; how many rows were handed over."""
    lengths = []
    for older, newer in pairwise(tables):
        clock.now += seconds
        rows = older.export()
        lengths.append(len(rows))
        newer.take(rows, tuple)
    return lengths


def test_a_flow_that_is_heard_of_no_more_is_forgotten() -> None:
    """Its age goes with it from process to process: the table does not grow with each release."""
    clock = Clock()
    tables = _tables(5, clock)
    assert tables[0].owner(PEER) is None
    assert _pass_on(tables, clock, 50) == [1, 1, 0, 0]
    assert not tables[2].known(PEER)
    assert tables[2].owner(PEER) is None


def test_a_flow_that_goes_on_is_kept_from_release_to_release() -> None:
    """What it was last heard of is what counts, whoever read it."""
    clock = Clock()
    tables = _tables(5, clock)
    assert tables[0].owner(PEER) is None
    for older, newer in pairwise(tables):
        clock.now += 100
        newer.take(older.export(), tuple)
        assert newer.owner(PEER) == Owner(1, 0)


def test_rows_of_owners_that_are_gone_are_not_handed_over(tmp_path: Path) -> None:
    """Whose inbox is gone gets nothing more."""
    table = _tables(3, Clock())[2]
    table.take([[list(PEER), 1, 0, 0.0], [["192.0.2.9", 53], 2, 0, 0.0]], tuple)
    (tmp_path / Owner(2, 0).file).touch()
    assert [row[1] for row in table.export(Peers(tmp_path).is_there)] == [2]


def test_options_are_no_part_of_what_a_vip_is() -> None:
    """Scheme, address and port are."""
    assert vip_key("tcp://127.0.0.1:80") == vip_key("tcp://127.0.0.1:80?name=web")
    assert vip_key("udp://[0:0::1]:4433?flow=quic") == vip_key("udp://[::1]:4433")
    assert len({vip_key(f"{url}:1") for url in ("tcp://[::]", "udp://[::]", "tcp://[::1]")}) == 3


def test_a_worker_that_is_started_again_goes_on_counting(tmp_path: Path) -> None:
    """What the dead one forwarded was forwarded."""
    for _ in range(3):
        agent = Agent(tmp_path, 1, 0, [], None)
        agent.peers.forwarded += 5
        agent._count()
        agent.inbox.close()
    assert counters(tmp_path)["forwarded"] == 15


@pytest.mark.root
def test_a_late_second_successor_is_told_no(echoes: Echoes) -> None:
    """It had the sockets first, and must end; the one that took over is succeeded by the next."""
    echoes.serving(1)
    flow = echoes.client()
    assert answerer(flow) == 1
    late = echoes.slow(2, 2.0)
    echoes.serving(3)
    young = echoes.client()
    assert answerer(young) == 3
    assert says(late) == (
        "takeover: generation 2 can't take over: another process has taken over already"
    )
    assert late.wait() == 1
    assert (answerer(flow), answerer(young), echoes.new_flows()) == (1, 3, {3})
    echoes.serving(4)
    assert (answerer(flow), answerer(young), echoes.new_flows()) == (1, 3, {4})


@pytest.mark.root
def test_an_older_generation_takes_nothing_back(echoes: Echoes) -> None:
    """A worker of a generation that was succeeded may be started again by mistake."""
    echoes.serving(3)
    old = echoes.start(2)
    assert says(old).endswith("generation 3 serves already")
    assert old.wait() == 1
    assert echoes.new_flows() == {3}


@pytest.mark.root
def test_whoever_serves_instead_of_a_dead_process_hands_over(echoes: Echoes) -> None:
    """The third has the second's sockets when that dies, and the first serves again."""
    echoes.serving(1)
    flow = echoes.client()
    assert answerer(flow) == 1
    second = echoes.serving(2)
    third = echoes.slow(3, 1.0)
    second.kill()
    second.wait()
    assert echoes.new_flows() == {1}
    assert says(third) == "takeover: serving"
    assert (answerer(flow), echoes.new_flows()) == (1, {3})


@pytest.mark.root
def test_the_first_goes_on_though_the_second_was_succeeded(echoes: Echoes) -> None:
    """The third, which succeeded the second, dies, and so does the second then."""
    echoes.serving(1)
    second = echoes.serving(2)
    third = echoes.serving(3)
    for process, survivor in ((third, 2), (second, 1)):
        process.kill()
        process.wait()
        assert echoes.new_flows() == {survivor}


LATE_TABLE = """
from sockway.takeover.routing import ByAddress
export = ByAddress.export
def late(*arguments):
    ByAddress.export = export
    time.sleep(6)
    return export(*arguments)
ByAddress.export = late
"""


@pytest.mark.root
def test_a_table_that_comes_too_late_ends_the_release(echoes: Echoes) -> None:
    """The new process says so and ends, for two can't read; the old one reads again."""
    echoes.serving(1, first=LATE_TABLE)
    flow = echoes.client()
    assert answerer(flow) == 1
    new = echoes.start(2)
    assert says(new).endswith("the process before did not hand over its flows within 5 s")
    assert new.wait() == 1
    time.sleep(1.5)
    assert (answerer(flow), echoes.new_flows()) == (1, {1})
    echoes.serving(3)
    assert (answerer(flow), echoes.new_flows()) == (1, {3})


@pytest.mark.root
def test_a_vip_whose_options_change_is_the_same_socket(echoes: Echoes) -> None:
    """No second one is bound, which would have half of the packets."""
    echoes.serving(1)
    flow = echoes.client()
    assert answerer(flow) == 1
    echoes.serving(2, urls="udp://[::]:4433?flow=tuple&name=echo")
    assert (answerer(flow), echoes.new_flows()) == (1, {2})


@pytest.mark.root
def test_vips_may_come_in_another_order(echoes: Echoes) -> None:
    """A forwarded packet is for the VIP, not for a number in a list."""
    two = ["udp://[::]:4433?flow=tuple", "udp://[::]:4434?flow=tuple"]
    echoes.serving(1, urls=" ".join(two))
    flows = [echoes.client(port) for port in (4433, 4434)]
    assert [answerer(flow) for flow in flows] == [1, 1]
    echoes.serving(2, urls=" ".join(reversed(two)))
    assert [answerer(flow) for flow in flows] == [1, 1]
    echoes.serving(3, urls=two[1])
    assert answerer(flows[1]) == 1


@pytest.mark.root
def test_a_udp_vip_that_goes_is_read_while_the_old_process_lives(echoes: Echoes) -> None:
    """No socket is left in the port that nobody reads, though another comes beside it."""
    two = "udp://[::]:4433?flow=tuple udp://[::]:4434?flow=tuple"
    echoes.serving(1, urls=two)
    flow = echoes.client(4434)
    assert answerer(flow) == 1
    echoes.serving(2)
    assert (answerer(flow), echoes.new_flows()) == (1, {2})
    echoes.serving(3, urls=two)
    assert echoes.new_flows(port=4434) == {1, 3}


def test_who_was_never_there_is_not_waited_for(tmp_path: Path) -> None:
    """A first start has no pause in it."""
    began = time.monotonic()
    assert ask_for_sockets(tmp_path, 0) is None
    assert who_serves(tmp_path, 0) is None
    assert time.monotonic() - began < 0.1
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "0.control"))
    assert ask_for_sockets(tmp_path, 0) is None
