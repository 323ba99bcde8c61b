from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aioquic.quic import connection as connection_module
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from examples.make_certificate import make_certificate
from sockway.errors import ConfigError, FeatureError
from sockway.quic import ConnectionIds, ServerIds
from sockway.quic.aioquic import install, install_from_environment_if_present
from sockway.wire.host_id import HostIds, Owner
from sockway.wire.quic_lb import QuicLb, QuicLbConfig

CODEC = HostIds(bytes(16), 14)
IDS = ConnectionIds(CODEC, generation=5, worker=3)
SERVER = ("192.0.2.1", 443)
CLIENT = ("192.0.2.2", 50_000)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Give aioquic its methods back."""
    initialise = QuicConnection.__init__
    replenish = QuicConnection._replenish_connection_ids
    yield
    QuicConnection.__init__ = initialise  # type: ignore[method-assign]
    QuicConnection._replenish_connection_ids = replenish  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def _handshake(certificate: tuple[Path, Path]) -> tuple[QuicConnection, QuicConnection]:
    """A client and a server that have finished their handshake, in memory."""
    client = QuicConnection(
        configuration=QuicConfiguration(
            is_client=True, server_name="localhost", cafile=str(certificate[0])
        )
    )
    configuration = QuicConfiguration(is_client=False)
    configuration.load_cert_chain(*certificate)
    server = QuicConnection(
        configuration=configuration,
        original_destination_connection_id=client.original_destination_connection_id,
    )
    client.connect(SERVER, now=0.0)
    for step in range(1, 6):
        now = step / 100
        for data, _ in client.datagrams_to_send(now=now):
            server.receive_datagram(data, CLIENT, now=now)
        for data, _ in server.datagrams_to_send(now=now):
            client.receive_datagram(data, SERVER, now=now)
    assert client._handshake_complete
    assert server._handshake_confirmed
    return client, server


def test_all_ids_of_a_server_are_ours(certificate: tuple[Path, Path]) -> None:
    """The first ID and the seven that follow lead to the worker, and have its length."""
    install(IDS)
    client, server = _handshake(certificate)
    offered = [client._peer_cid.cid, *(other.cid for other in client._peer_cid_available)]
    assert len(set(offered)) == 8
    assert {len(connection_id) for connection_id in offered} == {14}
    assert {CODEC.read(connection_id) for connection_id in offered} == {Owner(5, 3)}
    assert server.host_cid in offered


def test_a_client_keeps_its_own(certificate: tuple[Path, Path]) -> None:
    """Clients in a worker's process talk to other servers, which know nothing of our IDs."""
    install(IDS)
    client, _ = _handshake(certificate)
    assert {len(own.cid) for own in client._host_cids} == {8}
    assert {CODEC.read(own.cid) for own in client._host_cids} == {None}


def test_retired_ids_are_replaced_by_ours(certificate: tuple[Path, Path]) -> None:
    """A client that changes its ID is offered another of ours, and is understood."""
    install(IDS)
    client, server = _handshake(certificate)
    before = {own.cid for own in server._host_cids}
    client.change_connection_id()
    client.send_ping(1)
    for data, _ in client.datagrams_to_send(now=1.0):
        server.receive_datagram(data, CLIENT, now=1.0)
    after = {own.cid for own in server._host_cids}
    assert len(after - before) == 1
    assert {CODEC.read(connection_id) for connection_id in after} == {Owner(5, 3)}


def test_installing_again_replaces(certificate: tuple[Path, Path]) -> None:
    """The last call counts, and wrappers don't pile up."""
    install(ConnectionIds(HostIds(bytes(16), 20), generation=1, worker=1))
    first = QuicConnection._replenish_connection_ids
    install(IDS)
    client, _ = _handshake(certificate)
    assert CODEC.read(client._peer_cid.cid) == Owner(5, 3)
    assert QuicConnection._replenish_connection_ids is not first
    assert not hasattr(QuicConnection.__init__.sockway_original, "sockway_original")  # type: ignore[attr-defined]


def _retire(client: QuicConnection, server: QuicConnection, now: float) -> None:
    """The client takes another of the server's IDs, and the server offers one more."""
    client.change_connection_id()
    client.send_ping(1)
    for data, _ in client.datagrams_to_send(now=now):
        server.receive_datagram(data, CLIENT, now=now)
    for data, _ in server.datagrams_to_send(now=now):
        client.receive_datagram(data, SERVER, now=now)


@pytest.mark.parametrize("again", [True, False], ids=["install", "use"])
def test_balancers_read_another_configuration(
    certificate: tuple[Path, Path], *, again: bool
) -> None:
    """A live connection keeps its IDs, and gets new ones by the configuration of the day."""
    one = ServerIds(QuicLbConfig(1, 2, 4), 17)
    other = ServerIds(QuicLbConfig(2, 3, 7, key=bytes(range(16))), 70_000)
    ids = ConnectionIds(HostIds(bytes(16), 20), 5, 3, one)
    install(ids)
    client, server = _handshake(certificate)
    before = {own.cid for own in server._host_cids}
    assert {QuicLb(one.config).decode(each) for each in before} == {b"\0\x11"}
    if again:
        install(ConnectionIds(HostIds(bytes(16), 20), 5, 3, other))
    else:
        ids.use(other)
    for round_ in range(1, 9):
        _retire(client, server, float(round_))
        now = {own.cid for own in server._host_cids}
        assert len(now) == 8
        assert len(now & before) == 8 - round_
        fresh = now - before
        assert {QuicLb(other.config).decode(each) for each in fresh} == {b"\x01\x11\x70"}
        assert {CODEC.read(each) for each in now} == {Owner(5, 3)}
    assert server._loss.peer_completed_address_validation  # it lives
    assert client._peer_cid.cid in now


def test_the_length_stays_once_there_are_connections(certificate: tuple[Path, Path]) -> None:
    """Short headers don't tell how long an ID is, so a server has one length."""
    install(IDS)
    client, server = _handshake(certificate)
    with pytest.raises(ConfigError, match=r"IDs of 14 octets.*IDs of 16.*release"):
        install(ConnectionIds(HostIds(bytes(16), 16), 5, 3))
    _retire(client, server, 1.0)
    assert {CODEC.read(own.cid) for own in server._host_cids} == {Owner(5, 3)}


def test_names_that_moved_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another aioquic is refused before anything is changed, with its version and the way out."""

    class Moved(QuicConnection):
        _replenish_connection_ids = None  # type: ignore[assignment]

    monkeypatch.setattr(connection_module, "QuicConnection", Moved)
    with pytest.raises(FeatureError, match=r"aioquic 1\.\d+\.\d+ keeps its .*sockway\[quic\]"):
        install(IDS)
    assert "__init__" not in vars(Moved)


def test_aioquic_that_is_not_there_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra: without it, the error says how to get it."""
    monkeypatch.setitem(sys.modules, "aioquic.quic.connection", None)
    with pytest.raises(
        FeatureError, match=r"aioquic is not installed.*pip install 'sockway\[quic\]'"
    ):
        install(IDS)


def test_outside_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """One function insists on a worker's environment, the other is content without."""
    monkeypatch.delenv("SOCKWAY_ID_KEY", raising=False)
    assert install_from_environment_if_present() is None
    assert not hasattr(QuicConnection.__init__, "sockway_original")
    with pytest.raises(ConfigError, match="SOCKWAY_ID_KEY is not in the environment"):
        install()
    monkeypatch.setenv("SOCKWAY_ID_KEY", "00" * 16)
    with pytest.raises(ConfigError, match="SOCKWAY_ID_LENGTH is not in the environment"):
        install_from_environment_if_present()


def test_the_package_works_without_aioquic() -> None:
    """Other QUIC stacks need the IDs only: nothing else is imported for them."""
    code = "import sys, sockway.quic; print(*[m for m in sys.modules if 'aioquic' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
