"""`stamp up` over connections that are there: what they keep, and what they may write no more."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from sockway.balancer.stamping import Stamping
from tests.balancer.middlebox import SERVER, SERVER6, SYN, Middlebox, Segment, stripped
from tests.balancer.stamped import (
    ANY,
    ID,
    PORT,
    TOLD,
    WROTE,
    connected,
    listening,
    settled,
    spec,
    stamped,
    strip_syn_acks,
    talk,
    whole,
)

pytestmark = pytest.mark.root

ELSEWHERE = [ip_network("10.99.0.0/16"), ip_network("fd99::/64")]


def strip_echoes(segment: Segment, frame: bytearray) -> bool:
    """The server sees none of the client's options."""
    stripped({WROTE}, segment, frame)
    return True


@pytest.mark.parametrize("host", [SERVER, SERVER6])
def test_a_change_keeps_what_connections_know(cgroup: Path, box: Middlebox, host: str) -> None:
    """A client goes on with the ID that it was told."""
    with (
        stamped(cgroup) as stamping,
        listening(box, host) as server,
        connected(box, server) as ends,
    ):
        client, _ = ends
        talk(*ends)
        for ports in ([PORT, 8888], [PORT]):
            changed = Stamping.up(spec(cgroup, server_ports=ports, client_ports=ports))
            assert changed.id_of(client) == ID
            settled(box)
            talk(*ends)
            assert all(each.values(WROTE) == [ID] for each in box.of_client())
            assert not any(each.values(*ANY) for each in box.of_server())
        whole(stamping, box)


def test_a_change_before_the_echo(cgroup: Path, box: Middlebox) -> None:
    """A client that asks goes on asking, and the server tells on."""
    box.alter = strip_syn_acks
    with stamped(cgroup) as stamping, listening(box) as server, connected(box, server) as ends:
        assert stamping.counters()["asked"] == 1
        Stamping.up(spec(cgroup, server_ports=[PORT, 8888]))
        talk(*ends)
        whole(stamping, box)


@pytest.mark.parametrize("host", [SERVER, SERVER6])
@pytest.mark.parametrize("changed", [{"peers": ELSEWHERE}, {"client_ports": [1]}])
def test_a_client_whose_peer_or_port_is_out(
    cgroup: Path, box: Middlebox, host: str, changed: dict[str, Any]
) -> None:
    """It writes no more, has its room back, and does not begin again."""
    with stamped(cgroup), listening(box, host) as server, connected(box, server) as ends:
        talk(*ends)
        settled(box)
        for fields in (changed, {}):
            Stamping.up(spec(cgroup, **fields))
            talk(*ends)
        settled_seen = list(box.seen)
    assert len(settled_seen) > 10
    assert not any(each.values(*ANY) for each in settled_seen)
    assert {each.full for each in settled_seen} == {12}


@pytest.mark.parametrize(
    "changed", [{"peers": ELSEWHERE}, {"server_ports": [1]}, {"server_id": 0, "server_ports": []}]
)
def test_a_server_whose_peer_or_port_is_out(
    cgroup: Path, box: Middlebox, changed: dict[str, Any]
) -> None:
    """It was not echoed, and tells no more: neither its own option nor a client's."""
    box.alter = strip_echoes
    with stamped(cgroup) as stamping, listening(box) as server, connected(box, server) as ends:
        talk(*ends)
        settled(box)
        talk(*ends)
        assert all(each.values(TOLD) == [ID] for each in box.of_server())
        settled(box)
        Stamping.up(spec(cgroup, **changed))
        before = stamping.counters()["told_again"]
        talk(*ends)
        sent = box.of_server()
        assert not any(each.values(*ANY) for each in sent)
        assert {each.full for each in sent} == {12}
        assert stamping.counters()["told_again"] == before


def test_a_listener_whose_port_is_out(cgroup: Path, box: Middlebox) -> None:
    """The kernel goes on asking for its connections, and gets nothing."""
    with stamped(cgroup), listening(box) as server:
        Stamping.up(spec(cgroup, server_ports=[1]))
        with connected(box, server) as ends:
            talk(*ends)
        sent = box.of_server()
    assert sent
    assert not any(each.values(*ANY) for each in sent)
    assert {each.full for each in sent if not each.flags & SYN} == {12}


def test_down_and_up(cgroup: Path, box: Middlebox) -> None:
    """Connections of before have forgotten all, and nothing is written for them."""
    with stamped(cgroup) as stamping, listening(box) as server, connected(box, server) as ends:
        talk(*ends)
        stamping.down()
        with stamped(cgroup):
            settled(box)
            talk(*ends)
            assert {each.full for each in box.seen} == {12}
