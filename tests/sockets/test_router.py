"""What the router decides, on the kernel, packet by packet: all flow modes but QUIC's."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time

import pytest

from sockway import ConfigError, NotFoundError, Service, StateError, Vip
from sockway.kernel import Netns
from tests.sockets.conftest import Open
from tests.sockets.harness import Receivers, client, owners, publish, target

pytestmark = pytest.mark.root

ADDRESSES = ["127.0.0.1", "[::1]", "0.0.0.0", "[::]"]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_new_flows_go_to_the_published_generation(
    open_service: Open, receivers: Receivers, address: str, protocol: str
) -> None:
    """Both families, wildcards and both protocols: before a publish the old, after it the new."""
    vip = Vip.parse(f"{protocol}://{address}:5000")
    service = open_service(vip)
    for expected in (1, 2, 3):
        publish(service, receivers)
        for _ in range(8):
            if protocol == "tcp":
                with socket.create_connection(target(vip)):
                    assert receivers.expect().generation == expected
            else:
                with client(vip) as sock:
                    sock.sendto(b"x", target(vip))
                    assert receivers.expect().generation == expected


def test_an_ipv6_wildcard_takes_ipv4_too(open_service: Open, receivers: Receivers) -> None:
    """One dual-stack bind serves both families; with v6only IPv4 finds nobody."""
    service = open_service("udp://[::]:5000", "tcp://[::]:5000", "tcp://[::]:5001?v6only=1")
    publish(service, receivers)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"four", ("127.0.0.1", 5000))
        assert receivers.expect().payload == b"four"
    with socket.create_connection(("127.0.0.1", 5000)):
        assert receivers.expect().generation == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 5001))
    assert service.counters().total("new_flow") == 2


def test_nothing_reaches_a_generation_before_it_is_published(
    open_service: Open, receivers: Receivers
) -> None:
    """Its sockets are in the group and in the router, and yet no packet and no SYN meets them."""
    vip, udp = Vip.parse("tcp://127.0.0.1:5000"), Vip.parse("udp://127.0.0.1:5000")
    service = open_service(vip, udp)
    receivers.add(service.generation(workers=2))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(target(vip))
    with client(udp) as sock:
        sock.sendto(b"x", target(udp))
        assert receivers.receive(0.1) is None
    assert service.counters().total("unpublished") == 2


def test_known_flows_stay_through_many_publishes(open_service: Open, receivers: Receivers) -> None:
    """Seventeen generations are live at once, and each keeps the flows that it opened."""
    vip = Vip.parse("udp://127.0.0.1:5000")
    service = open_service(vip)
    with contextlib.ExitStack() as stack:
        flows = []
        for number in range(1, 18):
            publish(service, receivers, workers=3)
            for _ in range(5):
                sock = stack.enter_context(client(vip))
                sock.sendto(b"open", target(vip))
                receipt = receivers.expect()
                assert receipt.generation == number
                flows.append((sock, receipt.owner))
        for _ in range(3):
            for sock, owner in flows:
                sock.sendto(b"more", target(vip))
                assert receivers.expect().owner == owner
    assert [g.number for g in service.generations] == list(range(17, 0, -1))
    assert service.counters().total("owner_by_table") == 3 * len(flows)


def test_all_generations_that_fit_and_no_more(open_service: Open, receivers: Receivers) -> None:
    """Thirty-two generations are live at once; the next is refused and nothing is left of it."""
    service = open_service("tcp://127.0.0.1:5000")
    for _ in range(32):
        publish(service, receivers, workers=1)
    with pytest.raises(StateError, match="32 generations"):
        service.generation()
    assert len(service.generations) == 32
    service.generations[-1].close()
    assert publish(service, receivers, workers=1).number == 33


def test_a_flow_is_remembered_when_its_packet_is_received(
    open_service: Open, receivers: Receivers
) -> None:
    """A first packet that nobody answered, and its retransmissions, keep their owner."""
    vip = Vip.parse("udp://127.0.0.1:5000")
    service = open_service(vip)
    publish(service, receivers, workers=4)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(vip)) for _ in range(500)]
        for sock in clients:
            sock.sendto(b"first", target(vip))
        before = {r.source: r.owner for r in receivers.drain(500)}
        publish(service, receivers, workers=4)
        for sock in clients:
            sock.sendto(b"again", target(vip))
        after = {r.source: r.owner for r in receivers.drain(500)}
    assert after == before


def test_twelve_thousand_flows_stay_put(open_service: Open, receivers: Receivers) -> None:
    """More flows than the best peer can hold keep their owners across a publish, none evicted."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 12_500
    vip = Vip.parse("udp://127.0.0.1:5000")
    service = open_service(vip)
    publish(service, receivers, workers=2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with contextlib.ExitStack() as stack:
            # Sources differ in address and port: 250 addresses, 50 ports each.
            clients = [
                stack.enter_context(client(vip, f"127.0.{1 + n % 5}.{1 + n // 5 % 50}", 0))
                for n in range(count)
            ]
            owner = {}
            for sock in clients:
                sock.sendto(b"first", target(vip))
                receipt = receivers.expect()
                owner[sock] = receipt.owner
            publish(service, receivers, workers=2)
            moved = 0
            for sock in clients:
                sock.sendto(b"again", target(vip))
                moved += receivers.expect().owner != owner[sock]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    counters = service.counters()
    assert moved == 0
    assert counters.total("flow_stored") == count
    assert counters.total("flow_evicted") == 0


def test_evictions_are_counted_and_spare_the_flows_in_use(
    open_service: Open, receivers: Receivers
) -> None:
    """In a table that is far too small new flows push out each other, not confirmed ones."""
    vip = Vip.parse("udp://127.0.0.1:5000")
    service = open_service(vip, flows=64)
    publish(service, receivers, workers=2)
    with client(vip) as kept, contextlib.ExitStack() as stack:
        for _ in range(2):
            kept.sendto(b"kept", target(vip))
            owner = receivers.expect().owner
        for _ in range(1000):
            sock = stack.enter_context(client(vip))
            sock.sendto(b"flood", target(vip))
            receivers.expect()
            sock.close()
        publish(service, receivers, workers=2)
        kept.sendto(b"kept", target(vip))
        assert receivers.expect().owner == owner
    assert service.counters().total("flow_evicted") > 500


def test_a_silent_flow_is_forgotten(open_service: Open, receivers: Receivers) -> None:
    """After the timeout the flow is new, and goes to what is published by then."""
    vip = Vip.parse("udp://127.0.0.1:5000")
    service = open_service(vip, flow_timeout=1.0)
    publish(service, receivers)
    with client(vip) as sock:
        sock.sendto(b"x", target(vip))
        assert receivers.expect().generation == 1
        publish(service, receivers)
        sock.sendto(b"x", target(vip))
        assert receivers.expect().generation == 1
        time.sleep(3.3)
        sock.sendto(b"x", target(vip))
        assert receivers.expect().generation == 2


def test_without_flows_each_datagram_is_new(open_service: Open, receivers: Receivers) -> None:
    """Mode none remembers nothing: the same client moves with the publish."""
    vip = Vip.parse("udp://127.0.0.1:53?flow=none")
    service = open_service(vip)
    publish(service, receivers)
    with client(vip) as sock:
        for expected in (1, 2):
            sock.sendto(b"x", target(vip))
            assert receivers.expect().generation == expected
            if expected == 1:
                publish(service, receivers)
    assert service.state.flow_capacity == 8


def test_a_cookie_of_the_application_keeps_its_flow(
    open_service: Open, receivers: Receivers
) -> None:
    """Octets at the chosen offset are the flow, whatever address they come from."""
    vip = Vip.parse("udp://127.0.0.1:5000?flow=cookie&id_offset=3&id_length=4")
    service = open_service(vip)
    publish(service, receivers, workers=8)
    sessions = [os.urandom(4) for _ in range(20)]

    def send(session: bytes) -> tuple[int, int]:
        with client(vip) as sock:
            sock.sendto(os.urandom(3) + session + b"data", target(vip))
            return receivers.expect().owner

    before = [send(session) for session in sessions]
    publish(service, receivers, workers=8)
    assert [send(session) for session in sessions] == before
    with client(vip) as sock:
        sock.sendto(b"short", target(vip))  # no room for a cookie: by its address
        assert receivers.expect().generation == 2
        publish(service, receivers)
        sock.sendto(b"short", target(vip))
        assert receivers.expect().generation == 2


def test_a_minted_cookie_names_its_owner(open_service: Open, receivers: Receivers) -> None:
    """A cookie that the host minted is obeyed without a table, from the first packet on."""
    vip = Vip.parse("udp://127.0.0.1:5000?flow=cookie&id_offset=1&id_length=12")
    service = open_service(vip)
    first = publish(service, receivers, workers=4)
    publish(service, receivers, workers=4)
    with client(vip) as sock:
        for worker in range(4):
            cookie = first.ids(12).mint(first.number, worker)
            sock.sendto(b"!" + cookie + b"data", target(vip))
            assert receivers.expect().owner == (1, worker)
    assert service.counters().decisions["udp://127.0.0.1:5000"]["owner_by_id"] == 4


def test_256_workers_each_get_their_part(open_service: Open, receivers: Receivers) -> None:
    """The largest generation: every worker is in reach of the hash."""
    vip = Vip.parse("udp://127.0.0.1:5000?flow=none")
    service = open_service(vip)
    publish(service, receivers, workers=256)
    for _ in range(4000):
        with client(vip) as sock:
            sock.sendto(b"x", target(vip))
    got = owners(receivers.drain(4000))
    assert len(got) == 256
    with pytest.raises(ConfigError, match="257 workers"):
        service.generation(workers=257)


def test_4096_vips_switch_together(open_service: Open, receivers: Receivers) -> None:
    """The largest service: all VIPs have the new generation after one store."""
    vips = [Vip.parse(f"udp://127.{1 + n // 256}.0.{n % 256}:5000?flow=none") for n in range(4096)]
    service = open_service(*vips)
    for expected in (1, 2):
        generation = publish(service, receivers, workers=1)
        with client(vips[0]) as sock:
            for vip in (*vips[:20], *vips[2040:2060], *vips[-20:]):
                sock.sendto(b"x", target(vip))
                assert receivers.expect().generation == expected
    assert generation.number == 2
    with pytest.raises(ConfigError, match="4097 VIPs"):
        Service.open("more", [*vips, Vip.parse("udp://127.99.0.1:5000")])


def test_weights_change_at_run_time(open_service: Open, receivers: Receivers) -> None:
    """A weight of 0 takes a worker out of the choice, for new flows alone, without a restart."""
    vip = Vip.parse("udp://127.0.0.1:5000?spread=weights")
    service = open_service(vip)
    generation = publish(service, receivers, workers=4)

    def spread(count: int, source: str) -> dict[int, int]:
        got = [0] * 4
        for _ in range(count):
            with client(vip, source) as sock:
                sock.sendto(b"x", target(vip))
                got[receivers.expect().worker] += 1
        return dict(enumerate(got))

    even = spread(800, "127.0.0.2")
    assert all(120 < count < 280 for count in even.values())
    with client(vip) as old:
        old.sendto(b"x", target(vip))
        owner = receivers.expect().owner
        weights = [0.0 if worker == owner[1] else 1.0 for worker in range(4)]
        weights[(owner[1] + 1) % 4] = 6.0
        generation.set_weights(weights)
        assert [round(w, 2) for w in generation.weights] == [
            round(w / sum(weights), 2) for w in weights
        ]
        # From another address: a port that is used again is the flow that it was.
        after = spread(800, "127.0.0.3")
        old.sendto(b"x", target(vip))
        assert receivers.expect().owner == owner
    assert after[owner[1]] == 0
    assert 520 < after[(owner[1] + 1) % 4] < 680
    with pytest.raises(ConfigError):
        generation.set_weights([1.0])


def test_the_cpu_spread_keeps_a_packet_on_its_cpu(open_service: Open, receivers: Receivers) -> None:
    """Packets of one CPU meet that CPU's worker, whatever their hash."""
    vip = Vip.parse("udp://127.0.0.1:5000?flow=none&spread=cpu")
    service = open_service(vip)
    cpus = sorted(os.sched_getaffinity(0))
    publish(service, receivers, workers=os.cpu_count() or 1)
    try:
        for cpu in cpus:
            os.sched_setaffinity(0, {cpu})
            for _ in range(50):
                with client(vip) as sock:
                    sock.sendto(b"x", target(vip))
                    assert receivers.expect().worker == cpu
    finally:
        os.sched_setaffinity(0, cpus)


def test_vips_below_a_wildcard_are_counted_apart(open_service: Open, receivers: Receivers) -> None:
    """Members share the wildcard's sockets and have counters of their own, in both families."""
    service = open_service("udp://[::]:5000?flow=none&vip=127.0.0.9&vip=::1")
    publish(service, receivers)
    for address, times in (("127.0.0.9", 3), ("127.0.0.1", 2)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(times):
                sock.sendto(b"x", (address, 5000))
                receivers.expect()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("::1", 5000))
        receivers.expect()
    decisions = service.counters().decisions
    assert decisions["udp://127.0.0.9:5000"]["new_flow"] == 3
    assert decisions["udp://[::]:5000"]["new_flow"] == 2
    assert decisions["udp://[::1]:5000"]["new_flow"] == 1


def test_a_dead_worker_s_flows_go_to_a_live_one(open_service: Open, receivers: Receivers) -> None:
    """With its socket gone a worker leaves the array by itself; the reason is counted."""
    vip = Vip.parse("udp://127.0.0.1:5000")
    service = open_service(vip)
    generation = publish(service, receivers, workers=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(vip)) for _ in range(40)]
        for sock in clients:
            sock.sendto(b"x", target(vip))
        assert owners(receivers.drain(40)) == {(1, 0), (1, 1)}
        receivers.forget(generation, 0)
        for sock in clients:
            sock.sendto(b"x", target(vip))
        assert owners(receivers.drain(40)) == {(1, 1)}
    counters = service.counters()
    assert counters.total("owner_worker_gone") == counters.total("fallback_worker") > 0
    assert counters.total("kernel_hash") == 0


def test_a_dead_generation_falls_back_to_the_older_one(
    open_service: Open, receivers: Receivers
) -> None:
    """With all its sockets gone the published generation's flows meet the one before it."""
    vip, tcp = Vip.parse("udp://127.0.0.1:5000"), Vip.parse("tcp://127.0.0.1:5000")
    service = open_service(vip, tcp)
    publish(service, receivers)
    publish(service, receivers)
    third = publish(service, receivers)
    receivers.forget(service.get(2))
    receivers.forget(third)
    with client(vip) as sock, socket.create_connection(target(tcp)):
        assert receivers.expect().generation == 1
        sock.sendto(b"x", target(vip))
        assert receivers.expect().generation == 1
    assert service.counters().total("fallback_generation") == 2


def test_a_closed_generation_s_flows_are_new(open_service: Open, receivers: Receivers) -> None:
    """A generation that was closed owns nothing any more, and the reason is counted."""
    vip = Vip.parse("udp://127.0.0.1:5000")
    service = open_service(vip)
    first = publish(service, receivers)
    with client(vip) as sock:
        sock.sendto(b"x", target(vip))
        assert receivers.expect().generation == 1
        publish(service, receivers)
        receivers.forget(first)
        first.close()
        sock.sendto(b"x", target(vip))
        assert receivers.expect().generation == 2
        sock.sendto(b"x", target(vip))
        assert receivers.expect().generation == 2
    assert service.counters().total("owner_generation_gone") == 1


def test_rollback_is_a_publish_of_the_older(open_service: Open, receivers: Receivers) -> None:
    """After a rollback new flows go back, and the newer one is not what it falls back to."""
    vip = Vip.parse("udp://127.0.0.1:5000")
    service = open_service(vip)
    for _ in range(3):
        publish(service, receivers)
    assert service.rollback().number == 2
    assert [(g.number, g.fallback) for g in service.generations] == [(2, 3), (3, 1), (1, 0)]
    with client(vip) as sock:
        sock.sendto(b"x", target(vip))
        assert receivers.expect().generation == 2
    with pytest.raises(NotFoundError, match="no generation 9"):
        service.rollback(9)
    receivers.forget(service.get(1))
    with pytest.raises(StateError, match="no live socket"):
        service.rollback(1)


def test_two_namespaces_do_not_meet(open_service: Open, receivers: Receivers) -> None:
    """The same name, address and port in another namespace is another service."""
    vip = Vip.parse("udp://127.0.0.1:5000")
    here = open_service(vip)
    publish(here, receivers)
    with Netns.create() as other, other.entered():
        assert Service.names() == []
        there = open_service(vip)
        publish(there, receivers, workers=3)
        publish(there, receivers, workers=3)
        with client(vip) as sock:
            sock.sendto(b"x", target(vip))
            assert receivers.expect().generation == 2
    with client(vip) as sock:
        sock.sendto(b"x", target(vip))
        assert receivers.expect().generation == 1
    assert here.counters().total("new_flow") == there.counters().total("new_flow") == 1
