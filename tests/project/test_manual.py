"""Manual pages render without a warning, and have what `--help` has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from sockway.cli import app

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "man"
PAGES = sorted(path.name for path in MANUAL.glob("*.1"))


def rendered(name: str) -> str:
    """Return a page as plain text without any blanks; a warning is an error."""
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-P-c", "-P-b", "-P-o", "-P-u", MANUAL / name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    plain = re.sub("[\u2010\u2212]", "-", done.stdout)
    return re.sub(r"\s|\x1b\[\d*m", "", plain)


def test_there_is_a_page_for_each_group() -> None:
    """The command's own, and those that it refers to."""
    assert {"sockway.1", "sockway-balancer.1", "sockway-ids.1", "sockway-lab.1"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_it_renders_and_says_what_help_says(name: str) -> None:
    """Each option of each command is in it with its words, brackets too."""
    command = get_command(app)
    for word in name.removesuffix(".1").split("-")[1:]:
        command = command.commands[word]  # type: ignore[attr-defined]
    text = rendered(name)
    below = [command.commands[word] for word in command.commands]  # type: ignore[attr-defined]
    for each in [command, *(child for child in below if not hasattr(child, "commands"))]:
        for parameter in each.params:
            words = re.sub(r"\s+", "", getattr(parameter, "help", None) or "")
            assert words.replace("-", "") in text.replace("-", ""), parameter.name
