"""What can be asked of `sockway serve`, and what is said where it can't be."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockway.errors import ConfigError
from sockway.serve.config import Source, read_file
from sockway.serve.placeholders import fill, socket_names
from sockway.serve.users import find_user
from sockway.wire.addresses import Vip

GIVEN: dict[str, Any] = {"command": ["server"], "listen": ["tcp://[::]:8080"]}
ROOT = Path(__file__).resolve().parents[2]


def write(tmp_path: Path, text: str) -> Path:
    """A file with this text."""
    path = tmp_path / "web.toml"
    path.write_text(text)
    return path


def test_options_win_over_the_file(tmp_path: Path) -> None:
    """What the command line says is taken, the rest is the file's."""
    file = write(tmp_path, "listen = ['tcp://[::]:80']\nworkers = 4\ncommand = ['a']\n")
    spec = Source(file, {"workers": 2}).read()
    assert (spec.workers, spec.listen, spec.command) == (2, ["tcp://[::]:80"], ["a"])


def test_the_name_is_the_programs_unless_given() -> None:
    """`--name` may be left out."""
    command = ["/usr/bin/my.server", "x"]
    assert Source(None, {**GIVEN, "command": command}).read().name == "my-server"
    assert Source(None, {**GIVEN, "name": "web"}).read().name == "web"


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.toml")), ids=lambda p: p.name)
def test_the_examples_can_be_read(path: Path) -> None:
    """Each TOML file of the examples is a spec."""
    assert read_file(path).workers == 2


WRONG = [
    ("workers = 'two'", "line 1: workers = 'two' can't be used"),
    ("\nworkers = 0", "line 2: workers = 0 can't be used"),
    ("workers = true", "line 1: workers = True"),
    ("wrokers = 1", "line 1: wrokers is not known"),
    ("linger = -1.0", "line 1: linger = -1.0"),
    ("linger = inf", "line 1: linger = inf"),
    ("name = 'a b'", "line 1: name: service name 'a b'"),
    ("ready = 'soon'", "line 1: ready = 'soon' can't be used"),
    ("ready = 'http:health'", "line 1: ready = 'http:health' has no path"),
    ("ready = 'log:('", "line 1: ready = 'log:(' is no regular expression"),
    ("stop_signal = 'HELLO'", "line 1: stop_signal = 'HELLO' is no signal"),
    ("user = 'nobody-of-that-name'", "line 1: user: there is no user 'nobody-of-that-name'"),
    ("directory = '/not/there'", "line 1: directory = '/not/there' is not a directory"),
    ("# ports\n[env]\nPORT = 8080", "line 3: env.PORT = 8080 can't be used"),
    ("[env]\nA = '{fd:no}'", "{fd:no} names no socket"),
    ("[env]\nA = '{fd1}'", "{fd1}: there are 1 sockets"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text for text, _ in WRONG])
def test_what_is_wrong_in_a_file_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    """One error, with file, line and field."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Source(file, GIVEN).read()
    assert message in caught.value.message
    if message.startswith("line"):
        assert caught.value.message.startswith(f"{file}, line ")


def test_what_is_wrong_on_the_command_line_is_named_by_its_option(tmp_path: Path) -> None:
    """The option is named, even if there is a file with the same field."""
    file = write(tmp_path, "ready_timeout = 5\n")
    with pytest.raises(ConfigError, match=r"^--ready-timeout = -1 can't be used"):
        Source(file, {**GIVEN, "ready_timeout": -1}).read()
    with pytest.raises(ConfigError, match=r"^--listen: VIP 'http://x'"):
        Source(None, {**GIVEN, "listen": ["tcp://[::]:80", "http://x"]}).read()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no command to run"),
        ({"command": ["a"]}, "nothing to listen on"),
        ({"command": [], "listen": ["tcp://[::]:80"]}, "no command to run"),
        ({**GIVEN, "ready": "tcp", "listen": ["udp://[::]:80"]}, "needs a TCP VIP"),
        ({**GIVEN, "env": {"": "x"}}, "can't name a variable"),
    ],
)
def test_what_is_missing_is_said(given: dict[str, Any], message: str) -> None:
    """And the hint tells where it goes."""
    with pytest.raises(ConfigError) as caught:
        Source(None, given).read()
    assert message in caught.value.message
    assert caught.value.hint


def test_files_that_are_none(tmp_path: Path) -> None:
    """Not there, not TOML, not text: one clear error each."""
    with pytest.raises(ConfigError, match=r"can't read .*: No such file"):
        read_file(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match="is not TOML: Invalid"):
        read_file(write(tmp_path, "listen ="))
    binary = tmp_path / "x.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_file(binary)


def test_stop_signals_by_any_of_their_names() -> None:
    """QUIT, quit and SIGQUIT are one."""
    for name in ("QUIT", "quit", "SIGQUIT"):
        spec = Source(None, {**GIVEN, "stop_signal": name}).read()
        assert spec.stop_number == signal.SIGQUIT


def test_users_by_name_and_number() -> None:
    """USER, USER:GROUP, and numbers that no database has."""
    nobody = find_user("nobody")
    assert find_user(str(nobody.uid)) == nobody
    assert find_user("nobody:0").gid == 0
    assert find_user("4000000:7").groups == (7,)
    for wrong in ("4000000", "nobody:no-such-group", ""):
        with pytest.raises(ConfigError):
            find_user(wrong)


VIPS = [Vip.parse("tcp://[::]:80"), Vip.parse("udp://[::]:443?flow=quic&name=h3")]


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{fd}", "3"),
        ("fd://{fd1}/{fd:h3}", "fd://4/4"),
        ("{fd:tcp-80}", "3"),
        ("{worker}.{generation}", "7.9"),
        ("{x} {} {{fd}} {fd:}", None),
        ('{"json": 1} events {}', '{"json": 1} events {}'),
        ("{FD} {fd-1} { fd }", "{FD} {fd-1} { fd }"),
    ],
)
def test_placeholders(text: str, filled: str | None) -> None:
    """Known ones are filled in, other braces are left alone, wrong sockets are errors."""
    assert socket_names(VIPS) == ["tcp-80", "h3"]
    if filled is None:
        with pytest.raises(ConfigError):
            fill(text, VIPS, generation=9, worker=7)
    else:
        assert fill(text, VIPS, generation=9, worker=7) == filled


@given(st.text().filter(lambda text: "{" not in text))
def test_text_without_braces_is_left_alone(text: str) -> None:
    """Whatever it is."""
    assert fill(text, VIPS, generation=1, worker=0) == text


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.floats(), st.none())))
def test_any_options_are_a_spec_or_a_config_error(options: dict[str, Any]) -> None:
    """Nothing else comes out of wrong input."""
    try:
        Source(None, {**GIVEN, **options}).read()
    except ConfigError as error:
        assert error.message  # noqa: PT017 - it is the type that matters
