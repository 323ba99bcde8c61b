"""Help says all that the code says, and costs little: every command, as it is printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from sockway.cli import app
from sockway.cli.commands import COMMANDS
from sockway.cli.lazy import load

PARTS = {
    "asyncio", "cffi", "cryptography", "email", "jinja2", "matplotlib", "numpy", "pcapng",
    "pydantic", "pyroute2", "rich", "sqlite3", "ssl", "tomllib",
}  # fmt: skip
"""What takes long to import, and what is no part of a plain installation."""


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give every command and group with the words that call it."""

    def below(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name in getattr(command, "commands", {}):
            yield from below((*words, name), command.commands[name])

    yield from below((), get_command(app))


def squeezed(text: str) -> str:
    """Return the text without blanks and line breaks, which depend on the window."""
    return re.sub(r"\s+", "", text)


def wanted(command: Any) -> Iterator[str]:
    """Give each text that a command's help has to show."""
    yield command.help
    for parameter in command.params:
        yield parameter.help or ""
        yield from parameter.opts if parameter.param_type_name == "option" else []
        default = parameter.default
        is_flag = getattr(parameter, "is_flag", False)
        if parameter.show_default and default is not None and not is_flag and not callable(default):
            yield f"[default: {default}"  # perhaps with its range behind it
    for name in getattr(command, "commands", {}):
        yield name
        yield command.commands[name].get_short_help_str(1000)


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_help_shows_every_word(words: tuple[str, ...]) -> None:
    """No text is cut, and none loses what stands in brackets: defaults, [stamp]."""
    command = next(found for path, found in commands() if path == words)
    shown = CliRunner().invoke(app, [*words, "--help"])
    assert shown.exit_code == 0, shown.output
    text = squeezed(shown.output)
    assert [each for each in wanted(command) if squeezed(each) not in text] == []


def test_some_texts_have_brackets() -> None:
    """The test above would see words in brackets go: there are some, of both kinds."""
    texts = [text for _, command in commands() for text in wanted(command)]
    assert any("[stamp]" in text for text in texts)
    assert any("[default: main" in text for text in texts)
    assert any("[default: 4096]" in text for text in texts)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_commands_say(name: str) -> None:
    """The sentences that are shown without importing a command are those of the command."""
    entry = COMMANDS[name]
    real = load(name, entry).get_short_help_str(1000)
    assert entry.help.rstrip(".") == real.rstrip(".")


def imported(*arguments: str) -> set[str]:
    """Return the top-level modules that a command imports, and Sockway's packages."""
    script = (
        "import sys, json, atexit\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        f"sys.argv = ['sockway', *{list(arguments)!r}]\n"
        "from sockway.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stderr.splitlines()[-1])
    return {part for name in modules for part in (name.partition(".")[0], name)}


@pytest.mark.parametrize("option", ["--version", "--help", "version"])
def test_what_a_start_imports(option: str) -> None:
    """Nothing of the package but the command line, and nothing that takes long."""
    found = imported(option)
    assert found & PARTS == set()
    assert {name for name in found if name.startswith("sockway.")} <= {
        "sockway.cli", "sockway.cli.commands", "sockway.cli.lazy", "sockway.cli.output",
        "sockway.errors", "sockway.extras", "sockway.version",
    }  # fmt: skip


@pytest.mark.root
def test_what_status_imports() -> None:
    """The status asks the kernel and prints; it needs no model of a configuration, no netlink."""
    found = imported("status", "--json")
    assert found & PARTS == set()
    assert not any(name.startswith(("sockway.balancer", "sockway.lab")) for name in found)


@pytest.mark.root
@pytest.mark.parametrize("command", ["balancer", "backend", "stamp", "ids", "serve"])
def test_only_the_lab_imports_what_comes_with_extras(command: str) -> None:
    """Other commands work in a plain installation."""
    extras = {"aioquic", "granian", "h2", "hypercorn", "jinja2", "matplotlib", "numpy", "uvicorn"}
    assert imported(command, "--help") & extras == set()
