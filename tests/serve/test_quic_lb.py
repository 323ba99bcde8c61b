"""`quic_lb` of a service: what it may say, and what its workers get."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from sockway.errors import ConfigError
from sockway.quic import ServerIds
from sockway.serve.config import Source
from tests.serve.harness import LITTLE, VIP, Box

KEY = "8f95f09245765f80256934e50c66207f"
OTHER_KEY = "000102030405060708090a0b0c0d0e0f"
QUIC = "udp://127.0.0.1:443?flow=quic&ids=sockway"
GIVEN: dict[str, Any] = {"command": ["server"], "listen": ["tcp://[::]:80", QUIC]}
LEAST = "[quic_lb]\nrotation = 1\nserver_id = 17\n"


def write(tmp_path: Path, text: str) -> Path:
    """A file with this text."""
    path = tmp_path / "web.toml"
    path.write_text(text, encoding="utf-8")
    return path


def key_file(tmp_path: Path, key: str = KEY, mode: int = 0o600) -> Path:
    """A file with a key."""
    path = tmp_path / "key"
    path.write_text(f"{key}\n", encoding="ascii")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("lengths", "length"), [("", 16), ("nonce_length = 7", 16), ("nonce_length = 11", 20)]
)
def test_ids_are_long_enough_for_what_is_in_them(tmp_path: Path, lengths: str, length: int) -> None:
    """The router reads IDs of the length that the server's part needs, 16 octets at least."""
    spec = Source(write(tmp_path, LEAST + lengths), GIVEN).read()
    assert [vip.id_length for vip in spec.vips] == [0, length]


def test_a_length_that_is_given_stays(tmp_path: Path) -> None:
    """It leaves room for configurations to come, or is refused."""
    given = {**GIVEN, "listen": [f"{QUIC}&id_length=18"]}
    assert Source(write(tmp_path, LEAST), given).read().vips[0].id_length == 18
    file = write(tmp_path, f"{LEAST}nonce_length = 10")
    with pytest.raises(ConfigError, match=r"id_length=18 has no room.*use 19 to 20"):
        Source(file, given).read()


WRONG = [
    ("rotation = 7\nserver_id = 1", "line 2: quic_lb.rotation = 7 can't be used", "less than 7"),
    ("server_id = 1", "line 1: quic_lb.rotation is missing", "needed"),
    ("rotation = 1", "line 1: quic_lb: server_id is missing", "sockway ids env"),
    ("rotation = 1\nserver_id = 0", "line 3: quic_lb.server_id = 0", "greater than or equal to 1"),
    ("rotation = 1\nserver_id = 16777216", "line 3: quic_lb.server_id", "less than 16777216"),
    ("rotation = 1\nserver_id = 1\nnonce_length = 3", "line 4: quic_lb.nonce_length = 3", "to 4"),
    ("rotation = 1\nserver_id = 256\nserver_id_length = 1", "line 1: quic_lb", "than the 1 octets"),
    ("rotation = 1\nserver_id = 1\nnonce_length = 12", "line 1: quic_lb", "can be 14"),
    (f"rotation = 1\nserver_id = 1\nkey = '{KEY}'", "line 1: quic_lb", "needs nonce_length"),
    (
        f"rotation = 1\nserver_id = 1\nnonce_length = 6\nkey = '{KEY}'",
        "line 1: quic_lb",
        "nonce_length = 6 is too short: with a key use 7 or more",
    ),
    (
        "rotation = 1\nserver_id = 1\nnonce_length = 4\nkey_file = '/not/read'",
        "line 1: quic_lb",
        "nonce_length = 4 is too short",
    ),
    (f"rotation = 1\nserver_id = 1\nkey = '{KEY}0'", "line 4: quic_lb.key can't", "32 hexadecimal"),
    ("rotation = 1\nserver_id = 1\nkey = 5", "line 4: quic_lb.key can't be used", "string"),
    ("rotation = 1\nserver_id = 1\nkeys = 5", "line 4: quic_lb.keys is not known", "key_file"),
    (
        f"rotation = 1\nserver_id = 1\nnonce_length = 8\nkey = '{KEY}'\nkey_file = '/x'",
        "line 1: quic_lb",
        "leave one out",
    ),
    (
        "rotation = 1\nserver_id = 1\nnonce_length = 8\nkey_file = '/not/there'",
        "line 5: quic_lb.key_file: can't read /not/there: No such file",
        "openssl",
    ),
]


@pytest.mark.parametrize(("text", "message", "hint"), WRONG, ids=[each[0] for each in WRONG])
def test_what_is_wrong_is_named_and_no_key_is_shown(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    """File, line, field, limit."""
    with pytest.raises(ConfigError) as caught:
        Source(write(tmp_path, f"[quic_lb]\n{text}"), GIVEN).read()
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert KEY not in str(caught.value)


def test_the_server_id_may_be_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `sockway ids env` writes it; the file wins."""
    file = write(tmp_path, "[quic_lb]\nrotation = 1\nserver_id_length = 2")

    def found() -> int | None:
        spec = Source(file, GIVEN).read().quic_lb
        return None if spec is None else spec.server_id

    monkeypatch.setenv("SOCKWAY_SERVER_ID", "65535")
    assert found() == 65535
    for wrong in ("65536", "0", "", "0x11"):
        monkeypatch.setenv("SOCKWAY_SERVER_ID", wrong)
        with pytest.raises(
            ConfigError, match=rf"SERVER_ID={wrong} is not a number from 1 to 65535"
        ):
            found()
    write(tmp_path, LEAST)
    assert found() == 17


def test_it_is_for_quic(tmp_path: Path) -> None:
    """Nothing else has connection IDs."""
    with pytest.raises(ConfigError, match=r"line 1: quic_lb is for connection IDs of QUIC"):
        Source(write(tmp_path, LEAST), {**GIVEN, "listen": ["udp://[::]:53"]}).read()


def test_keys_that_others_may_read_are_refused(tmp_path: Path) -> None:
    """As files that hold no key."""
    text = f"{LEAST}nonce_length = 8\nkey_file = '{tmp_path}/key'"
    file = write(tmp_path, text)
    key_file(tmp_path)
    spec = Source(file, GIVEN).read()
    assert spec.quic_lb
    assert spec.quic_lb.ids().config.key == bytes.fromhex(KEY)
    assert KEY not in repr(spec)
    for mode in (0o640, 0o604, 0o620):
        key_file(tmp_path, mode=mode)
        with pytest.raises(ConfigError, match=rf"key_file: .*mode {mode:04o}.*chmod 600"):
            Source(file, GIVEN).read()
    key_file(tmp_path, KEY[1:])
    with pytest.raises(ConfigError, match=r"key_file: what is in .* is no key") as caught:
        Source(file, GIVEN).read()
    assert KEY[1:] not in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "socket", "no path"])
def test_a_key_is_read_from_a_file_only(tmp_path: Path, kind: str) -> None:
    """Whatever else is there is refused at once, with the place; nothing waits for a writer."""
    path = tmp_path / "key"
    name = str(path)
    with socket.socket(socket.AF_UNIX) as bound:
        match kind:
            case "pipe":
                os.mkfifo(path, 0o600)
            case "directory":
                path.mkdir()
            case "device":
                name = "/dev/zero"
            case "socket":
                bound.bind(name)
            case _:
                name = "a\\u0000b"
        file = write(tmp_path, f'{LEAST}nonce_length = 8\nkey_file = "{name}"')
        with pytest.raises(ConfigError, match=r"line 5: quic_lb.key_file: ") as caught:
            Source(file, GIVEN).read()
    assert "openssl" in (caught.value.hint or "")
    assert "\0" not in str(caught.value)


@pytest.mark.root
def test_each_generation_mints_by_its_own_configuration(box: Box, tmp_path: Path) -> None:
    """A release takes the file and the key as they are then; an older worker keeps what it has."""
    path = key_file(tmp_path)
    web = f"command = {[*LITTLE]}\nlisten = ['{VIP}', '{QUIC}&id_length=20']\n"

    def configure(rotation: int, nonce: int) -> Path:
        lines = f"{web}linger = 60.0\n"
        lb = f"rotation = {rotation}\nserver_id = 17\nnonce_length = {nonce}\n"
        return write(tmp_path, f"{lines}[quic_lb]\n{lb}key_file = '{path}'\n")

    def got() -> ServerIds:
        environment = json.loads(box.get("/env"))
        assert environment["SOCKWAY_ID_LENGTH"] == "20"
        found = ServerIds.from_environment(environment)
        assert found is not None
        return found

    supervised = box.serve("--config", str(configure(1, 8)), SOCKWAY_QUIC_LB_KEY="not ours")
    supervised.published(1)
    before = got()
    assert (before.config.rotation, before.config.key) == (1, bytes.fromhex(KEY))
    configure(2, 10)
    key_file(tmp_path, OTHER_KEY)
    assert got().environment == before.environment
    os.kill(box.ask().pid, signal.SIGKILL)  # the one that follows is of the same generation
    supervised.wait_step("restarted", generation=1)
    assert got().environment == before.environment
    box.release()
    after = got()
    assert (after.config.rotation, after.config.nonce_length) == (2, 10)
    assert after.config.key == bytes.fromhex(OTHER_KEY)
    write(tmp_path, web)
    box.release()
    assert not [name for name in json.loads(box.get("/env")) if "QUIC_LB" in name]
    assert KEY not in json.dumps(supervised.steps)
