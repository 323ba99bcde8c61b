"""Reads the project's Markdown: its links, and its examples that tests run.

An example is a fenced block whose language is followed by the word ``test``:

* ``python test``: run as a program; the blocks of a page are one program.
* ``console test``: lines with ``$`` are run by bash, one session a page; the other lines are
  what has to appear in its output, in order, ``...`` standing for anything.
* ``toml serve``, ``toml balancer``, ``toml backend``, ``toml lab``: a file that such a command
  takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")


@dataclass(frozen=True)
class Example:
    """A block of a page that a test runs."""

    language: str
    body: str
    line: int
    """Of the block's first line in the page, counted from 1."""


def pages() -> list[Path]:
    """All pages that people read, as paths from the project's root."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(page.relative_to(ROOT) for page in found)


def examples(page: Path, language: str, kind: str = "test") -> list[Example]:
    """The page's examples of a language that are to be run, or read as a kind of file."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Example(language, match["body"], text.count("\n", 0, match.start("body")) + 1)
        for match in FENCE.finditer(text)
        if match["info"].split() == [language, kind]
    ]


def pages_with(language: str, kind: str = "test") -> list[Path]:
    """The pages that have examples of a language, and of a kind."""
    return [page for page in pages() if examples(page, language, kind)]


def links(page: Path) -> list[str]:
    """Targets of the page's links within the project."""
    text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    targets = [match["target"].partition("#")[0] for match in LINK.finditer(text)]
    return [target for target in targets if target and "://" not in target]


def program(page: Path) -> str:
    """The page's Python examples as one program whose line numbers are the page's."""
    lines: list[str] = []
    for example in examples(page, "python"):
        lines += [""] * (example.line - 1 - len(lines))
        lines += example.body.splitlines()
    return "\n".join(lines) + "\n"


def session(page: Path) -> tuple[str, list[str]]:
    """The page's console examples: what bash runs, and the lines that have to appear."""
    commands: list[str] = []
    expected: list[str] = []
    for example in examples(page, "console"):
        continued = False
        for line in example.body.splitlines():
            if continued or line.startswith("$ "):
                commands.append(line if continued else line[2:])
                continued = line.endswith("\\")
            elif line.strip():
                expected.append(line.strip())
    return "\n".join(commands) + "\n", expected


def missing(expected: list[str], output: str) -> list[str]:
    """What of the expected lines does not appear in the output, in their order."""
    lines = iter(output.splitlines())
    for at, pattern in enumerate(expected):
        regex = re.compile(r"\s*" + r".*".join(map(re.escape, pattern.split("..."))) + r"\s*")
        if not any(regex.fullmatch(line) for line in lines):
            return expected[at:]
    return []
