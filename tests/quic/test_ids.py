from __future__ import annotations

import pytest

from sockway.errors import ConfigError
from sockway.quic import ConnectionIds, is_worker
from sockway.wire.host_id import HostIds, Owner

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
