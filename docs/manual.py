"""Manual pages from the commands: sockway(1), and one for each group of commands.

`docs/generate.py` writes them to docs/man together with the reference, from the same tree of
commands that `--help` prints.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

HEAD = '.\\" Written by docs/generate.py (`make docs`); change the code instead.\n'
EXIT_STATUS = """.SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
It was tried and failed, or something is missing that it needs.
.TP
.B 2
Options, files or VIPs that can't be used.
.TP
.B 3
There is no such service, generation or supervisor.
.TP
.B 4
Another process is changing it, or it is running already.
.TP
.B 5
The kernel or its permissions don't allow it.
.TP
.B 70
A bug;
.B sockway \\-\\-debug
shows where.
"""
ENVIRONMENT = """.SH ENVIRONMENT
.TP
.B SOCKWAY_BPFFS
Where state is pinned, in a bpffs; /sys/fs/bpf/sockway unless given.
.TP
.B SOCKWAY_RUNTIME
Where supervisors keep sockets and records; /run/sockway unless given.
.TP
.B SOCKWAY_IDS
The registry of server IDs; /var/lib/sockway/ids.db unless given.
"""


def escaped(text: str) -> str:
    """Return text as roff takes it: no line is a request, no word an escape."""
    out = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return out.replace("\n.", "\n\\&.")


def paragraphs(text: str) -> str:
    """Return a docstring's paragraphs."""
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n.PP\n".join(escaped(" ".join(part.split())) for part in parts) + "\n"


def synopsis(path: str, command: Any) -> str:
    """Return how a command is called, in one line."""
    words = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            word = str(parameter.metavar or parameter.name).upper().strip("[].")
            word += "..." if parameter.nargs != 1 else ""
            words.append(word if parameter.required else f"[{word}]")
    if hasattr(command, "commands"):
        words.append("COMMAND [ARGUMENT...]")
    line = escaped(" ".join(["[OPTION...]", *words]))
    return f".B {escaped(path)}\n{line}\n"


def parameters(command: Any) -> Iterator[str]:
    """Give a command's arguments and options, each with its help and default."""
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        if parameter.param_type_name == "argument":
            name = str(parameter.metavar or parameter.name).upper().strip("[].")
        else:
            name = ", ".join([*parameter.opts, *parameter.secondary_opts])
            if not parameter.is_flag:
                kind = str(parameter.metavar or parameter.type.name).strip("<>")
                name += f" {kind.removesuffix(' range').upper()}"
        text = " ".join((parameter.help or "").split())
        default = parameter.default
        if default not in (None, False, (), [], "") and not callable(default):
            text += f" [default: {default}]"
        yield f".TP\n.B {escaped(name)}\n{escaped(text)}\n"


def page(path: str, command: Any, others: list[str]) -> str:
    """Return the manual page of a command and of the commands below it.

    Args:
        path: how the command is called, such as `sockway balancer`.
        command: as the option parser has it.
        others: names of the other pages.

    """
    name = path.replace(" ", "-")
    short = command.get_short_help_str(1000).rstrip(".")
    out = f'{HEAD}.TH {name.upper()} 1 "" "Sockway" "Sockway"\n'
    out += f".SH NAME\n{escaped(name)} \\- {escaped(short)}\n"
    out += f".SH SYNOPSIS\n{synopsis(path, command)}.SH DESCRIPTION\n{paragraphs(command.help)}"
    out += ".SH OPTIONS\n" + "".join(parameters(command)) if list(command.params) else ""
    out += ".SH COMMANDS\n"
    for child_name in command.commands:
        child = command.commands[child_name]
        if hasattr(child, "commands"):
            out += f".SS {escaped(path)} {child_name}\n{paragraphs(child.help)}See\n"
            out += f".BR {escaped(f'sockway-{child_name}')} (1).\n"
            continue
        out += f".SS {escaped(path)} {child_name}\n{synopsis(f'{path} {child_name}', child)}.PP\n"
        out += paragraphs(child.help) + "".join(parameters(child))
    out += EXIT_STATUS + ENVIRONMENT
    seen = [f".BR {escaped(other)} (1)" for other in others if other != name]
    return out + ".SH SEE ALSO\n" + ",\n".join(seen) + "\n"


def pages(root: Any) -> dict[str, str]:
    """Return all pages by file name.

    Args:
        root: the top-level command.

    """
    groups = {"sockway": root} | {
        f"sockway {name}": root.commands[name]
        for name in root.commands
        if hasattr(root.commands[name], "commands")
    }
    names = [path.replace(" ", "-") for path in groups]
    return {
        f"{path.replace(' ', '-')}.1": page(path, command, names)
        for path, command in groups.items()
    }
