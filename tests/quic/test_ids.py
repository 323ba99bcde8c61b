from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockway.errors import ConfigError
from sockway.quic import ConnectionIds, ServerIds, is_worker
from sockway.wire.host_id import HostIds, Owner
from sockway.wire.quic_lb import QuicLb, QuicLbConfig

KEY = "000102030405060708090A0B0C0D0E0F"
ENVIRONMENT = {
    "SOCKWAY_GENERATION": "300",
    "SOCKWAY_WORKER": "7",
    "SOCKWAY_ID_KEY": KEY,
    "SOCKWAY_ID_LENGTH": "12",
}


def test_a_worker_mints_by_its_environment() -> None:
    """An ID of the length asked for leads to the generation and worker of the environment."""
    ids = ConnectionIds.from_environment(ENVIRONMENT)
    connection_id = ids.mint()
    assert len(connection_id) == ids.length == 12
    assert HostIds(bytes.fromhex(KEY)).read(connection_id) == Owner(300 % 256, 7)
    assert ids.read(connection_id) == Owner(300 % 256, 7)
    assert ids.mint(bytes(ids.prefix_length)).startswith(bytes(7))


def test_ids_do_not_repeat() -> None:
    """A worker mints thousands of IDs, all of them different."""
    ids = ConnectionIds.from_environment(ENVIRONMENT)
    assert len({ids.mint() for _ in range(5000)}) == 5000


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_a_missing_variable_is_named(name: str) -> None:
    """The error says which variable is not there, and who sets it."""
    environment = {key: value for key, value in ENVIRONMENT.items() if key != name}
    with pytest.raises(ConfigError, match=rf"{name} is not in the environment .*sockway serve"):
        ConnectionIds.from_environment(environment)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SOCKWAY_GENERATION", "0"),
        ("SOCKWAY_GENERATION", "one"),
        ("SOCKWAY_WORKER", "256"),
        ("SOCKWAY_WORKER", "-1"),
        ("SOCKWAY_ID_LENGTH", "7"),
        ("SOCKWAY_ID_LENGTH", "21"),
        ("SOCKWAY_ID_LENGTH", ""),
    ],
)
def test_a_number_that_cannot_be_is_named(name: str, value: str) -> None:
    """The error says which variable holds what, and what it may hold."""
    with pytest.raises(ConfigError, match=rf"{name}={value} is not a number from \d+ to \d+"):
        ConnectionIds.from_environment({**ENVIRONMENT, name: value})


@pytest.mark.parametrize("key", ["", KEY[1:], KEY + "00", "x" * 32])
def test_a_bad_key_is_not_shown(key: str) -> None:
    """The key is a secret: the error names the variable and not its value."""
    with pytest.raises(ConfigError, match="SOCKWAY_ID_KEY is not 32 hex") as caught:
        ConnectionIds.from_environment({**ENVIRONMENT, "SOCKWAY_ID_KEY": key})
    assert not key or key not in str(caught.value)


def test_a_process_knows_whether_it_is_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Applications that also run alone can tell."""
    monkeypatch.delenv("SOCKWAY_ID_KEY", raising=False)
    assert not is_worker()
    monkeypatch.setenv("SOCKWAY_ID_KEY", KEY)
    assert is_worker()


SERVER = {
    "SOCKWAY_QUIC_LB_ROTATION": "3",
    "SOCKWAY_QUIC_LB_SERVER_ID": "00abcd",
    "SOCKWAY_QUIC_LB_NONCE_LENGTH": "8",
}
LB_KEY = "8f95f09245765f80256934e50c66207f"
LONG = {**ENVIRONMENT, "SOCKWAY_ID_LENGTH": "20"}


@given(
    rotation=st.integers(0, 6),
    key=st.none() | st.binary(min_size=16, max_size=16),
    data=st.data(),
)
def test_both_readers_find_their_part(
    rotation: int, key: bytes | None, data: st.DataObject
) -> None:
    """Balancers find the server, the host's router the worker, whatever lengths."""
    least = 4 if key is None else 7
    octets = data.draw(st.integers(1, 14 - least))
    lengths = octets, data.draw(st.integers(least, 14 - octets))
    config = QuicLbConfig(rotation, *lengths, key=key)
    number = data.draw(st.integers(0, (1 << 8 * lengths[0]) - 1))
    length = data.draw(st.integers(max(8, config.length + 5), 20))
    codec = HostIds(bytes.fromhex(KEY), length)
    ids = ConnectionIds(codec, 300, 7, ServerIds(config, number))
    minted = [ids.mint() for _ in range(3)]
    for each in minted:
        assert len(each) == length
        assert each[0] == rotation << 5 | length - 1
        assert QuicLb(config).decode(each) == number.to_bytes(lengths[0], "big")
        assert codec.read(each) == Owner(300 % 256, 7)
    assert len(set(minted)) == 3


@pytest.mark.parametrize("key", [None, LB_KEY])
def test_a_worker_mints_for_balancers_by_its_environment(key: str | None) -> None:
    """What the supervisor sets is what is read, the key included."""
    config = QuicLbConfig(3, 3, 8, key=bytes.fromhex(key) if key else None)
    server = ServerIds(config, 0xABCD)
    expected = {**SERVER, "SOCKWAY_QUIC_LB_KEY": key} if key else SERVER
    assert server.environment == expected
    ids = ConnectionIds.from_environment({**LONG, **server.environment})
    assert QuicLb(config).decode(ids.mint()) == b"\x00\xab\xcd"
    assert ids.mint(bytes(15)).startswith(bytes(15))
    assert ConnectionIds.from_environment(LONG).server is None


@pytest.mark.parametrize("name", SERVER)
def test_half_of_a_configuration_is_noticed(name: str) -> None:
    """What is missing is named; no ID is minted that leads nowhere."""
    environment = {key: value for key, value in SERVER.items() if key != name}
    with pytest.raises(ConfigError, match=f"{name} is not in the environment"):
        ConnectionIds.from_environment({**LONG, **environment})


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("ROTATION", "7", "ROTATION=7 is not a number from 0 to 6"),
        ("NONCE_LENGTH", "3", "NONCE_LENGTH=3 is not a number from 4 to 13"),
        ("NONCE_LENGTH", "12", r"server_id_length \+ nonce_length is 15.*14 at most"),
        ("NONCE_LENGTH", "6", r"nonce_length is 6, too short for encrypted.*use 7 or more"),
        ("SERVER_ID", "17", None),
        ("SERVER_ID", "171", "SERVER_ID=171 is not 2 to 26 hexadecimal"),
        ("KEY", LB_KEY[1:], "SOCKWAY_QUIC_LB_KEY is not 32 hexadecimal digits"),
    ],
)
def test_what_balancers_could_not_read_is_named(name: str, value: str, what: str | None) -> None:
    """The variable, and what it may hold; a key is not shown."""
    encrypted = {**SERVER, "SOCKWAY_QUIC_LB_KEY": LB_KEY}
    environment = {**LONG, **encrypted, f"SOCKWAY_QUIC_LB_{name}": value}
    if what is None:
        assert ConnectionIds.from_environment(environment).server
        return
    with pytest.raises(ConfigError, match=what) as caught:
        ConnectionIds.from_environment(environment)
    assert LB_KEY[1:] not in str(caught.value)


def test_short_ids_have_no_room_for_a_server() -> None:
    """The error says how long they must be."""
    with pytest.raises(ConfigError, match=r"12 octets have no room.*id_length=17"):
        ConnectionIds.from_environment({**ENVIRONMENT, **SERVER})
    with pytest.raises(ConfigError, match=r"server_id is 65536.*0 to 65535"):
        ServerIds(QuicLbConfig(0, 2, 4), 1 << 16)
