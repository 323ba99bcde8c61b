"""Write docs/reference and docs/man from the code: commands, library, counters.

`make docs` writes the pages; ``--check`` only says which of them are out of date.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import enum
import importlib
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import manual

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
MANUAL = ROOT / "docs" / "man"
LIBRARY = (
    "sockway",
    "sockway.balancer",
    "sockway.balancer.host",
    "sockway.balancer.stamping",
    "sockway.fleet",
    "sockway.quic",
    "sockway.drain",
)
SECTIONS = {"Args:": "Arguments", "Returns:": "Returns", "Raises:": "Raises", "Yields:": "Yields"}
NOTE = "<!-- Written by docs/generate.py (`make docs`); change the code instead. -->\n"


# Docstrings


def prose(thing: Any) -> str:
    """A docstring as Markdown: sections become lists."""
    # A module's is not indented to begin with; getdoc would unindent its examples.
    text = thing.__doc__ if isinstance(thing, ModuleType) else inspect.getdoc(thing)
    return render(text or "")


def render(text: str) -> str:
    """The same for a docstring's text."""
    lines: list[str] = []
    section = False
    for line in text.splitlines():
        if line in SECTIONS:
            lines += ["", f"*{SECTIONS[line]}*", ""]
            section = True
        elif section and line.strip():
            entry = re.fullmatch(r" {4}(\*{0,2}\w+): (.*)", line)
            continued = f"  {line.strip()}" if line.startswith(" " * 8) else f"- {line.strip()}"
            lines.append(f"- `{entry[1]}`: {entry[2]}" if entry else continued)
        else:
            section = section and not line.strip()
            lines.append(line)
    return code_blocks("\n".join(lines)).strip() + "\n"


def code_blocks(text: str) -> str:
    """Indented blocks of a docstring as fenced ones, so that nothing in them is markup."""
    fenced = re.compile(r"(?:(?<=\n\n)|\A)((?: {4}.*\n?(?:\n(?= {4}))?)+)")
    return fenced.sub(lambda match: f"```text\n{textwrap.dedent(match[1]).rstrip()}\n```\n", text)


# Library


def signature(function: Any) -> str:
    """A callable's parameters as they are written, without `self` and `cls`."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return "()"
    kept = [p for name, p in found.parameters.items() if name not in {"self", "cls"}]
    text = str(found.replace(parameters=kept)).replace("'", "")
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=\w+)", "", text)


def field_notes(cls: type) -> dict[str, str]:
    """What stands in a string below each field of a class."""
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, ValueError):
        return {}
    notes = {}
    body = getattr(definition, "body", [])
    for statement, following in itertools.pairwise(body):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(note))),
            ):
                notes[name] = " ".join(note.split())
    return notes


def described(cls: type) -> Iterator[str]:
    """A class: its values or fields, then its public members."""
    notes = field_notes(cls)
    things: dict[str, str] = {}
    if issubclass(cls, enum.Enum):
        things = {member.name: str(member.value) for member in cls}
    elif dataclasses.is_dataclass(cls):
        fields = dataclasses.fields(cls)
        things = {f.name: f"{f.name}: {f.type}" for f in fields if not f.name.startswith("_")}
    for name, shown in things.items():
        yield f"- `{shown}`: {notes[name]}\n" if name in notes else f"- `{shown}`\n"
    yield "\n"
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", member)
        if name.startswith("_") or name in things:
            continue
        if isinstance(member, property):
            yield f"#### `{cls.__name__}.{name}`\n\n{prose(member)}\n"
        elif inspect.isfunction(function):
            yield f"#### `{cls.__name__}.{name}{signature(function)}`\n\n{prose(function)}\n"


def module_reference(module: ModuleType) -> Iterator[str]:
    """All that a module's __all__ names."""
    yield f"## {module.__name__}\n\n{prose(module)}\n"
    names = getattr(module, "__all__", [])
    errors = [n for n in names if isinstance(getattr(module, n), type)
              and issubclass(getattr(module, n), Exception)]  # fmt: skip
    for name in names:
        thing = getattr(module, name)
        if name in errors:
            continue
        if isinstance(thing, type):
            yield f"### `{name}`\n\n{prose(thing)}\n"
            yield from described(thing)
        elif callable(thing):
            yield f"### `{name}{signature(thing)}`\n\n{prose(thing)}\n"
    if errors:
        yield f"### Errors\n\n{prose(importlib.import_module('sockway.errors'))}\n"


def library() -> str:
    """The page about what can be imported."""
    parts = [NOTE, "# Library\n\n"]
    for name in LIBRARY:
        parts += module_reference(importlib.import_module(name))
    return "".join(parts)


# Commands


def command_reference(command: Any, path: str) -> Iterator[str]:
    """A command with its arguments and options; a group with its commands."""
    help_text = inspect.cleandoc(command.help or "").replace("\f", "").replace("\b\n", "")
    if path.count(" ") > 0:
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        words = " ".join(argument_word(argument) for argument in arguments)
        options = " [OPTIONS]" if len(arguments) < len(command.params) else ""
        yield f"## `{path}`\n\n```text\n{path}{options} {words}".rstrip() + "\n```\n\n"
    if help_text:
        yield f"{help_text}\n\n"
    rows = [row for row in map(parameter_row, command.params) if row]
    if rows:
        yield "| | |\n| --- | --- |\n" + "".join(rows) + "\n"
    for name in sorted(getattr(command, "commands", {})):
        child = command.commands[name]
        if not child.hidden:
            yield from command_reference(child, f"{path} {name}")


def argument_word(argument: Any) -> str:
    """How an argument stands in a usage line."""
    word = str(argument.metavar or argument.name).upper().strip("[].")
    word += "..." if argument.nargs != 1 else ""
    return word if argument.required else f"[{word}]"


def type_word(option: Any) -> str:
    """What an option takes, in capitals."""
    return str(option.metavar or option.type.name).strip("<>").removesuffix(" range").upper()


def parameter_row(parameter: Any) -> str:
    """A parameter as a row of a table, or nothing when it is hidden."""
    if getattr(parameter, "hidden", False):
        return ""
    if parameter.param_type_name == "argument":
        name = argument_word(parameter)
    else:
        value = "" if parameter.is_flag else f" {type_word(parameter)}"
        name = ", ".join([*parameter.opts, *parameter.secondary_opts]) + value
    text = " ".join((getattr(parameter, "help", None) or "").split())
    default = parameter.default
    if (
        default not in (None, False, (), [], "")
        and not callable(default)
        and not parameter.required
    ):
        shown = getattr(default, "value", default)
        text = f"{text} Default: `{shown}`."
    return f"| `{name}` | {text.strip()} |\n".replace("||", "| |")


def commands() -> str:
    """The page about the command `sockway`."""
    typer_main = importlib.import_module("typer.main")
    app = importlib.import_module("sockway.cli").app
    parts = command_reference(typer_main.get_command(app), "sockway")
    return NOTE + "# Commands\n\n" + "".join(parts)


# Counters


def count_rows(header: str, name: str, prefix: str = "") -> str:
    """Rows of a table from the C enum that counters are counted by, and its comments."""
    text = (ROOT / "bpf" / header).read_text(encoding="utf-8")
    match = re.search(rf"enum {name} \{{\n(.*?)\n\}};", text, re.DOTALL)
    if match is None:
        sys.exit(f"bpf/{header} has no enum {name}")
    rows = ""
    for member, note in re.findall(r"(\w+) = \d+,\s*/\*\s*(.*?)\s*\*/", match[1], re.DOTALL):
        said = " ".join(note.split()).rstrip(",")
        rows += f"| `{member.lower().removeprefix(prefix)}` | {said} |\n"
    return rows


def counters() -> str:
    """The page about the router's decisions, from the C declarations that count them."""
    rows = count_rows("router.h", "decision")
    return (
        f"{NOTE}# Counters\n\n"
        "What the router decided, counted for each VIP; `sockway status --json` and\n"
        "`Service.counters()` have the numbers. A packet counts under one of the decisions,\n"
        "and under what was done to the flow table where it was used. Packets of flows that\n"
        "were known are counted apart from those that open one, for each worker, too.\n\n"
        f"| decision | meaning |\n| --- | --- |\n{rows}"
    )


# Configuration


CONFIGURATIONS = (
    ("A service", "sockway.serve.spec", "ServeSpec", ""),
    ("Its connection IDs for balancers", "sockway.serve.quic_lb", "QuicLbSpec", "[quic_lb]"),
    ("A balancer", "sockway.balancer.spec", "BalancerSpec", ""),
    ("A VIP", "sockway.balancer.spec", "VipSpec", "[[vip]]"),
    ("Its limit", "sockway.balancer.spec", "LimitSpec", "[vip.limit]"),
    ("A pool", "sockway.balancer.spec", "PoolSpec", "[pool.NAME]"),
    ("A backend of a pool", "sockway.balancer.spec", "BackendSpec", "[pool.NAME.backends]"),
    ("A pool's health check", "sockway.balancer.health.spec", "HealthSpec", "[pool.NAME.health]"),
    ("Stamps of TCP, as balancers read them", "sockway.balancer.spec", "StampSpec", "[stamp]"),
    ("QUIC connection IDs", "sockway.balancer.spec", "QuicIdSpec", "[[quic_ids]]"),
    ("Stamps of a host", "sockway.balancer.stamping", "StampingSpec", ""),
    ("A backend's own file", "sockway.balancer.host", "HostSpec", ""),
    ("A lab", "sockway.lab.topology", "Topology", ""),
    (
        "A host of a lab",
        "sockway.lab.topology",
        "HostDescription",
        "[[client]], [[balancer]], [[backend]]",
    ),
    ("A router of a lab", "sockway.lab.topology", "RouterDescription", "[[router]]"),
)


def configuration() -> str:
    """The page about TOML files, from the models that read them."""
    head = (
        f"{NOTE}# Configuration\n\n"
        "Files of `sockway serve`, `balancer`, `backend`, `stamp` and `lab up`, in TOML; how\n"
        "they are used is told by the guides for [servers](../howto/release-a-server.md) and\n"
        "[balancers](../howto/balancer.md). Whatever is wrong is one error with file, line and\n"
        "field, and nothing is changed.\n"
    )
    parts = [head]
    for title, module, name, table in CONFIGURATIONS:
        model = getattr(importlib.import_module(module), name)
        where = f", `{table}`" if table else ""
        parts.append(f"\n## {title}{where}\n\n{prose(model)}\n")
        parts.append("| field | type | unless given | |\n| --- | --- | --- | --- |\n")
        notes = field_notes(model)
        for field, info in model.model_fields.items():
            if (info.json_schema_extra or {}).get("internal"):
                continue  # not to be written in files
            parts.append(field_row(field, model, info, notes.get(field, "")))
    return "".join(parts)


def field_row(name: str, model: Any, info: Any, note: str) -> str:
    """A field as a row of a table."""
    kind = str(model.__annotations__[name]).replace(" | None", "").replace("|", "or")
    kind = kind.replace("Literal[", "").removesuffix("]") if "Literal" in kind else kind
    kind = re.sub(r"Annotated\[(\w+), .*\]", r"\1", kind)
    if info.is_required():
        default = "needed"
    elif info.default_factory is not None or info.default is None or info.default == "":
        default = "none"
    else:
        default = f"`{info.default}`".replace("True", "true").replace("False", "false")
    note = note or (info.description or "")
    return f"| `{name}` | {kind} | {default} | {note} |\n".replace("|  |", "| |")


def outcomes() -> str:
    """The balancer's counters, from the C declarations."""
    rows = count_rows("balancer.h", "outcome")
    return (
        "\n## The balancer's\n\n"
        "What became of packets, counted for each VIP; `sockway balancer stats` has the numbers,\n"
        "and [what the balancer does with a packet](balancer-packets.md) the rules.\n\n"
        f"| outcome | meaning |\n| --- | --- |\n{rows}\n"
        "These say what the program decided. What the kernel lost after that is counted apart, by\n"
        "the kernel's tracepoints: `undelivered` has the frames, and for each way the two\n"
        "interfaces and the reason ([native or generic](../howto/balancer.md#native-or-generic)).\n"
        "It is `null` where the kernel can't tell.\n"
    )


def stamp_counts() -> str:
    """The counters of a host's stamps, from the C declarations."""
    rows = count_rows("stamp.h", "stamp_count", "stamp_")
    return (
        "\n## Those of stamps\n\n"
        "What a host's stamps of TCP did; `sockway stamp status` has the numbers, and\n"
        "[stamps](../howto/stamps.md) what they are about.\n\n"
        f"| count | meaning |\n| --- | --- |\n{rows}"
    )


PAGES = {
    "commands.md": commands,
    "library.md": library,
    "counters.md": lambda: counters() + outcomes() + stamp_counts(),
    "configuration.md": configuration,
}


def tidy(text: str) -> str:
    """One blank line where there are several, one newline at the end."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def main() -> int:
    """Write the pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    check = parser.parse_args().check
    stale = 0
    written = {REFERENCE / name: tidy(make()) for name, make in PAGES.items()}
    root = importlib.import_module("typer.main").get_command(
        importlib.import_module("sockway.cli").app
    )
    written |= {MANUAL / name: text for name, text in manual.pages(root).items()}
    for path, text in written.items():
        path.parent.mkdir(exist_ok=True)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        place = path.relative_to(ROOT)
        if check:
            print(f"{place} is out of date: run `make docs`")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {place}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
