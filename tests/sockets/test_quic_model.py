"""The router against a model of it: any datagrams, in any order, with publishes in between."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sockway import HostIds, Vip
from tests.sockets.conftest import Open
from tests.sockets.harness import Receivers, client, publish, target
from tests.sockets.packets import V1, V2, long_header, short_header
from tests.sockets.quic_model import Model

pytestmark = pytest.mark.root

WORKERS = 3
PUBLISHED = 4
"""Generations that the test publishes."""
EXAMPLES = 30
"""Runs of datagrams for each generation."""

client_ids = st.one_of(
    st.sampled_from([bytes([n]) * length for n in range(3) for length in (0, 4, 7, 8, 20)]),
    st.binary(max_size=24),
)
versions = st.sampled_from([V1, V2, 0, 0xFF00001D, 0x6B3343CE])
tails = st.one_of(st.just(bytes(60)), st.binary(max_size=40))


@st.composite
def datagrams(draw: st.DrawFn, minted: list[bytes]) -> bytes:
    """Well-formed packets, nearly well-formed ones, and garbage."""
    ids = st.one_of(st.sampled_from(minted), client_ids) if minted else client_ids
    form = draw(st.sampled_from(["long", "long", "long", "short", "short", "garbage"]))
    if form == "garbage":
        return draw(st.binary(max_size=120))
    if form == "short":
        flags = draw(st.integers(0, 0x7F))
        whole = bytes([flags]) + draw(ids) + draw(tails)
    else:
        to, by = draw(ids), draw(client_ids)
        whole = (
            bytes([draw(st.integers(0x80, 0xFF))])
            + draw(versions).to_bytes(4, "big")
            + bytes([draw(st.sampled_from([len(to)] * 8 + [255, 21, len(to) ^ 1]))])
            + to
            + bytes([draw(st.sampled_from([len(by)] * 8 + [255, 21, len(by) ^ 1]))])
            + by
            + draw(tails)
        )
    keep = draw(st.one_of(st.none(), st.none(), st.integers(0, 80)))
    return whole[:keep]


def _of_each_kind(codec: HostIds, model: Model) -> list[bytes]:
    """A first packet, itself again, and both forms of packets to a worker's ID."""
    own = codec.mint(model.published, 0)
    first = long_header(os.urandom(8), os.urandom(8))
    return [first, first, short_header(own), long_header(own, b"client-1")]


@pytest.mark.parametrize("ids", ["sockway", "any"])
def test_the_router_decides_as_the_model(
    open_service: Open, receivers: Receivers, ids: str
) -> None:
    """Each datagram arrives, whole, where the model says, and is counted as what it says."""
    vip = Vip.parse(f"udp://127.0.0.1:4433?flow=quic&ids={ids}&id_length=16")
    service = open_service(vip)
    codec = HostIds(service.state.id_key, 16)
    model = Model(codec, foreign=ids == "any", id_length=16)
    minted = [HostIds(service.state.id_key, n).mint(9, 0) for n in (8, 16, 20)]  # of nobody
    expected: Counter[str] = Counter()

    def release() -> None:
        generation = publish(service, receivers, workers=WORKERS)
        model.generations[generation.number] = WORKERS
        model.published = generation.number
        for length in (8, 12, 16, 20):
            made = HostIds(service.state.id_key, length)
            minted.extend(made.mint(generation.number, w) for w in range(WORKERS))
        minted.append(codec.mint(generation.number, WORKERS))  # of a worker that is not there

    def send(sock: socket.socket, datagram: bytes) -> None:
        source = sock.getsockname()
        decision, owner = model.decide(datagram, source)
        sock.sendto(datagram, target(vip))
        receipt = receivers.expect()
        assert receipt.payload == datagram
        if owner is None:
            assert receipt.generation == model.published, decision
        else:
            assert receipt.owner == owner, decision
        if decision == "new_flow":
            model.learn(datagram, source, receipt.owner)
        expected[decision] += 1

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client(vip, "127.0.0.1")) for _ in range(3)]
        for _ in range(PUBLISHED):
            release()

            # What the router knows grows from example to example, and so does what the model knows.
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(st.lists(st.tuples(st.integers(0, 2), datagrams(list(minted))), max_size=30))
            def compare(run: list[tuple[int, bytes]]) -> None:
                for sender, datagram in run:
                    send(clients[sender], datagram)

            compare()
            # Whatever was drawn, each kind of decision comes up in each generation.
            for datagram, sock in itertools.product(_of_each_kind(codec, model), clients):
                send(sock, datagram)
    counted = service.counters().decisions["udp://127.0.0.1:4433"]
    assert {name: counted.get(name, 0) for name in expected} == dict(expected)
    least = {"owner_by_id": 6, "owner_by_table": 5, "new_flow": 1}
    assert {name for name, n in least.items() if expected[name] < n * PUBLISHED} == set()
