"""From a TOML file and command-line options to a checked `ServeSpec`.

Options win over the file. Whatever is wrong becomes one `ConfigError` that says where: the option,
or the file with the line and the field.
"""

from __future__ import annotations

import re
import signal
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sockway.errors import ConfigError
from sockway.places import line_of, written
from sockway.serve.placeholders import check as check_placeholders
from sockway.serve.quic_lb import QuicLbSpec
from sockway.serve.ready import KINDS
from sockway.serve.spec import ServeSpec, signal_name
from sockway.serve.users import find_user
from sockway.sockets.state import check_name
from sockway.wire.addresses import FlowMode


@dataclass(frozen=True)
class Source:
    """Where a spec comes from, so that it can be read again and errors can point at it."""

    file: Path | None = None
    """A TOML file."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields given on the command line; they win."""

    def read(self) -> ServeSpec:
        """Read the file (again), put the options over it, and check the whole.

        Raises:
            ConfigError: it names the field, where it was given, and what is allowed.

        """
        text, data = _load(self.file)
        places = _Places(self.file, text, self.options)
        try:
            spec = ServeSpec.model_validate({**data, **self.options})
        except ValidationError as error:
            raise places.explain(error) from None
        _check(spec, places)
        return _completed(spec, places)


def read_file(path: Path | str) -> ServeSpec:
    """The spec in a TOML file.

    Raises:
        ConfigError: it names the file, the line, the field and what is allowed.

    """
    return Source(Path(path)).read()


def _load(file: Path | None) -> tuple[str, dict[str, Any]]:
    if file is None:
        return "", {}
    try:
        text = file.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"can't read {file}: {error.strerror}", hint="give a TOML file with --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}", hint="see https://toml.io") from None


class _Places:
    """Says where a field was given."""

    def __init__(self, file: Path | None, text: str, options: Mapping[str, Any]) -> None:
        self._file = file
        self._text = text
        self._options = options

    def of(self, location: Sequence[str | int]) -> str:
        """The option, or file, line and field."""
        name = str(location[0]) if location else ""
        if self._file is None or name in self._options:
            return "COMMAND" if name == "command" else f"--{name.replace('_', '-')}"
        line = line_of(self._text, location)
        return f"{self._file}{f', line {line}' if line else ''}: {written(location)}"

    def explain(self, error: ValidationError) -> ConfigError:
        """The first thing that is wrong, in this project's words."""
        first = error.errors(include_url=False)[0]
        location = first["loc"]
        kind, value = first["type"], first.get("input")
        place = self.of(location)
        if kind == "missing":
            missing = {
                "command": ("no command to run", "give it after `--`, or as `command` in the file"),
                "listen": ("nothing to listen on", "give --listen tcp://[::]:8080, or `listen`"),
            }
            top = str(location[0]) if len(location) == 1 else ""
            what, hint = missing.get(top, (f"{place} is missing", "it is needed there"))
            return ConfigError(what, hint=hint)
        if kind == "extra_forbidden":
            known = QuicLbSpec.model_fields if len(location) > 1 else ServeSpec.model_fields
            return ConfigError(
                f"{place} is not known", hint=f"known are {', '.join(sorted(known))}"
            )
        if kind == "too_short" and location[0] == "command":
            return ConfigError("no command to run", hint="give it after `--`")
        if first["type"] == "value_error":
            return ConfigError(f"{place} can't be used", hint=str(first["ctx"]["error"]))
        allowed = first["msg"].removeprefix("Input ")
        if isinstance(value, dict) or location[-1:] == ("key",):  # it has or is a secret
            return ConfigError(f"{place} can't be used", hint=f"it {allowed}")
        return ConfigError(f"{place} = {value!r} can't be used", hint=f"it {allowed}")


def _check(spec: ServeSpec, places: _Places) -> None:
    """What a model of fields can't say."""
    try:
        check_name(spec.name)
    except ConfigError as error:
        raise ConfigError(f"{places.of(['name'])}: {error.message}", hint=error.hint) from None
    for index, text in enumerate(spec.listen):
        try:
            spec.vips[index]
        except ConfigError as error:
            where = places.of(["listen", index])
            raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None
        del text
    _check_ready(spec, places)
    _check_ids(spec, places)
    if signal_name(spec.stop_signal) not in signal.Signals.__members__:
        raise ConfigError(
            f"{places.of(['stop_signal'])} = {spec.stop_signal!r} is no signal",
            hint="use TERM, INT, QUIT, USR1 or another name of `kill -l`",
        )
    for name in spec.env:
        if not name or "=" in name or "\0" in name:
            raise ConfigError(
                f"{places.of(['env', name])}: {name!r} can't name a variable", hint="use NAME=VALUE"
            )
    check_placeholders(spec)
    if spec.directory is not None and not spec.directory.is_dir():
        raise ConfigError(
            f"{places.of(['directory'])} = {str(spec.directory)!r} is not a directory",
            hint="create it, or leave it out to stay in the supervisor's",
        )
    if spec.user is not None:
        try:
            find_user(spec.user)
        except ConfigError as error:
            raise ConfigError(f"{places.of(['user'])}: {error.message}", hint=error.hint) from None


def _check_ids(spec: ServeSpec, places: _Places) -> None:
    """Connection IDs have room for what balancers read."""
    if spec.quic_lb is None:
        return
    if not any(vip.flow == FlowMode.QUIC for vip in spec.vips):
        raise ConfigError(
            f"{places.of(['quic_lb'])} is for connection IDs of QUIC, and no VIP has them",
            hint="listen on udp://[::]:443?flow=quic&ids=sockway",
        )
    for index, vip in enumerate(spec.vips):
        if vip.flow == FlowMode.QUIC and vip.id_length < spec.least_id_length:
            raise ConfigError(
                f"{places.of(['listen', index])}: id_length={vip.id_length} has no room for what "
                f"quic_lb puts into connection IDs",
                hint=f"use {spec.least_id_length} to 20, or leave it out",
            )


def _completed(spec: ServeSpec, places: _Places) -> ServeSpec:
    """With what the configuration only refers to, as of now: a server ID, a key."""
    if spec.quic_lb is None:
        return spec
    try:
        quic_lb = spec.quic_lb.with_server_id()
    except ConfigError as error:
        raise ConfigError(f"{places.of(['quic_lb'])}: {error.message}", hint=error.hint) from None
    try:
        quic_lb = quic_lb.with_key()
    except ConfigError as error:
        where = places.of(["quic_lb", "key_file"])
        raise ConfigError(f"{where}: {error.message}", hint=error.hint) from None
    return spec.model_copy(update={"quic_lb": quic_lb})


def _check_ready(spec: ServeSpec, places: _Places) -> None:
    kind, rest = spec.ready_kind
    place = f"{places.of(['ready'])} = {spec.ready!r}"
    if kind not in {"auto", "notify", "tcp", "http", "log", "exec"}:
        raise ConfigError(f"{place} can't be used", hint=f"use one of {KINDS}")
    if kind in {"tcp", "http"} and not any(vip.protocol == "tcp" for vip in spec.vips):
        raise ConfigError(f"{place} needs a TCP VIP to connect to", hint="use notify, log or exec")
    if kind == "http" and not rest.startswith("/"):
        raise ConfigError(f"{place} has no path", hint="write http:/health")
    if kind == "log":
        try:
            re.compile(rest)
        except re.error as error:
            raise ConfigError(f"{place} is no regular expression: {error}") from None
    if kind in {"auto", "notify", "tcp", "exec"} and rest:
        raise ConfigError(f"{place}: nothing follows {kind}", hint=f"write {kind}")
