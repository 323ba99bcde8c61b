"""Commands that are imported when they are called, and help in plain text.

`sockway --help` has to name every command, and each start of `sockway` to find one. So the
top-level group has a table: for each command its module, its name there and the sentence of its
help. Only the module of the command that is called is imported; a test holds the sentences
against the commands.

Help is plain text and not rich's: rich takes words in brackets for markup and drops them
(`[default: 1]`, `[stamp]`), and importing it takes a third of the time that `--help` may take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


_WHOLE: Final = 1000
"""Characters; no sentence is longer."""


@dataclass(frozen=True)
class Entry:
    """Where a command of the top level is, and what the list of commands says of it."""

    module: str
    name: str
    """A function, or a group's `typer.Typer`."""
    help: str


class Command(TyperCommand):
    """A command whose options stand below their headings (`rich_help_panel`)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, options, and then options of each heading."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                heading = getattr(parameter, "rich_help_panel", None) or kind
                sections.setdefault(heading, []).append(record)
        for heading in sorted(sections, key=lambda name: (name != "Arguments", name != "Options")):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])


class Group(TyperGroup):
    """A group whose list of commands has each one's first sentence whole."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list; the parser's own would cut sentences at the end of their line."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, each.get_short_help_str(_WHOLE)) for name, each in found if each is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def group(help_text: str) -> typer.Typer:
    """Return an empty group of commands.

    Args:
        help_text: what stands above the list of its commands.

    """
    return typer.Typer(
        cls=Group,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT,
    )


def lazy_group(entries: Mapping[str, Entry]) -> type[TyperGroup]:
    """Return the class of a group whose commands are these.

    Args:
        entries: by the command's name, in the order in which help lists them.

    """

    class LazyGroup(Group):
        """Loads a command when it is called, and nothing for the list of all."""

        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.commands = _Commands(entries)

        def list_commands(self, ctx: Any) -> list[str]:
            del ctx
            return list(entries)

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            with _listing(self.commands):
                super().format_commands(ctx, formatter)

        def shell_complete(self, ctx: Any, incomplete: str) -> Any:
            with _listing(self.commands):
                return super().shell_complete(ctx, incomplete)

    return LazyGroup


class _Commands(dict[str, Any]):
    """Commands by name; each is made when it is taken out."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        super().__init__(dict.fromkeys(entries))
        self._entries = entries
        self.listing = False
        """Only names and sentences are wanted."""

    def __getitem__(self, name: str) -> Any:
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self._entries:
            return default
        entry = self._entries[name]
        if self.listing:
            return TyperCommand(name, help=entry.help, rich_markup_mode=None)
        if super().__getitem__(name) is None:
            self[name] = load(name, entry)
        return super().__getitem__(name)

    def items(self) -> Any:
        """Give all, loaded."""
        return {name: self[name] for name in self}.items()

    def values(self) -> Any:
        """Give all, loaded."""
        return [self[name] for name in self]


@contextmanager
def _listing(commands: Any) -> Iterator[None]:
    commands.listing = True
    try:
        yield
    finally:
        commands.listing = False


def load(name: str, entry: Entry) -> Any:
    """Import a command and return it as the option parser has it."""
    found = getattr(import_module(entry.module), entry.name)
    if not isinstance(found, typer.Typer):
        alone = group("")
        alone.command(name, cls=Command)(found)
        found = alone
    made = get_command(found)
    made.name = name
    return made


__all__ = ["CONTEXT", "Command", "Entry", "group", "lazy_group", "load"]
