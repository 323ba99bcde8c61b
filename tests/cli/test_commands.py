"""The commands as scripts see them: exit codes, JSON, one clear error with its way out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sockway.cli import app
from sockway.cli.output import exit_code, sentence
from sockway.errors import (
    BusyError,
    ConfigError,
    FeatureError,
    NotFoundError,
    PermissionDenied,
    ReleaseError,
    SockwayError,
    StateError,
)
from sockway.sockets.service import Service
from sockway.wire.addresses import Vip
from tests.serve.harness import LITTLE, VIP, Box, eventually

Run = Callable[..., Result]


@pytest.fixture
def run(box: Box) -> Run:
    """Runs a command in the box, in this process."""

    def invoke(*arguments: str) -> Result:
        return box.netns.run(lambda: CliRunner().invoke(app, list(arguments)))

    return invoke


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (NotFoundError("x"), 3),
        (BusyError("x"), 4),
        (PermissionDenied("x"), 5),
        (FeatureError("x"), 5),
        (StateError("x"), 1),
        (ReleaseError("x"), 1),
        (SockwayError("x"), 1),
    ],
)
def test_exit_codes(error: SockwayError, code: int) -> None:
    """Each kind of error has its code; scripts rely on them."""
    assert exit_code(error) == code


def test_steps_in_words() -> None:
    """What people read of a step."""
    step = {"step": "died", "generation": 2, "worker": 1, "how": "ended", "restart_in": 0.5}
    assert sentence(step) == "worker 1 of generation 2: died (how ended, restart in 0.5)"
    assert sentence({"step": "stopped", "generation": 2, "killed": []}) == "generation 2: stopped"
    assert sentence({"step": "terminating"}) == "the service: terminating"


def test_version_and_help() -> None:
    """They work without any privilege."""
    runner = CliRunner()
    plain = runner.invoke(app, ["version"])
    assert plain.exit_code == 0
    assert runner.invoke(app, ["--version"]).output == plain.output
    assert json.loads(runner.invoke(app, ["version", "--json"]).output)["version"] in plain.output
    for command in ("serve", "release", "rollback", "drain", "weights", "status", "remove"):
        result = runner.invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert "--json" in result.output, f"{command} has it, as every command"


USAGE = [
    (["serve"], "no command to run"),
    (["serve", "--", "true"], "nothing to listen on"),
    (["serve", "--listen", "http://x", "--", "true"], "--listen: VIP 'http://x'"),
    (["serve", "--listen", VIP, "--workers", "0", "--", "true"], "--workers = 0 can't be used"),
    (["serve", "--listen", VIP, "--env", "X", "--", "true"], "--env 'X' has no value"),
    (["serve", "--config", "/no/such.toml"], "can't read /no/such.toml"),
    (["release", "a b"], "service name 'a b' can't be used"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=[m for _, m in USAGE])
def test_usage_errors(arguments: list[str], message: str) -> None:
    """Status 2, one line, a hint, no traceback; the same as JSON."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    first, second, *rest = result.stderr.splitlines()
    assert first.startswith(f"sockway: error: {message}")
    assert second.startswith("  hint: ")
    assert rest == []
    at = 1
    told = CliRunner().invoke(app, [*arguments[:at], "--json", *arguments[at:]])
    assert told.exit_code == 2
    error = json.loads(told.stdout)
    assert (error["ok"], error["kind"]) == (False, "ConfigError")
    assert error["error"] in first


def test_unknown_options() -> None:
    """The option parser's own errors have status 2 as well."""
    assert CliRunner().invoke(app, ["status", "--no-such"]).exit_code == 2
    assert CliRunner().invoke(app, ["no-such"]).exit_code == 2


def test_what_nobody_expected_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 70 and the way to the traceback, which `--debug` shows."""
    script = (
        "import sockway.cli.commands as c, sockway.cli.status as status\n"
        "def broken(*_, **__): raise RuntimeError('x')\n"
        "status.show = broken\n"
        "c.main()\n"
    )
    del monkeypatch
    command = [sys.executable, "-c", script]
    plain = subprocess.run([*command, "status"], capture_output=True, text=True, check=False)
    assert plain.returncode == 70
    assert plain.stderr.splitlines() == [
        "sockway: error: unexpected RuntimeError: x",
        "  hint: a bug; `sockway --debug ...` shows where",
    ]
    debug = subprocess.run(
        [*command, "--debug", "status"], capture_output=True, text=True, check=False
    )
    assert "Traceback" in debug.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    "arguments",
    [
        ["release", "web"],
        ["rollback", "web"],
        ["drain", "web", "1"],
        ["weights", "web", "1"],
        ["status", "web"],
        ["remove", "web"],
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_no_such_service(run: Run, arguments: list[str]) -> None:
    """Status 3, and where to look."""
    result = run(*arguments)
    assert result.exit_code == 3
    assert "there is no service 'web' in this network namespace" in result.stderr
    assert "`sockway status`" in result.stderr


@pytest.mark.root
def test_status_of_nothing(run: Run) -> None:
    """An empty host is no error."""
    assert "no service is pinned" in run("status").output
    assert json.loads(run("status", "--json").output) == {"services": []}


@pytest.mark.root
def test_status_of_a_service(run: Run, box: Box) -> None:
    """What JSON has, and that the table shows the same."""
    serve = box.serve("--listen", VIP, "--workers", "2").published(1)
    answer = box.ask()
    (service,) = json.loads(run("status", "--json").output)["services"]
    assert service["name"] == "web"
    assert service["published"] == 1
    assert service["supervisor"] == serve.process.pid
    assert service["vips"][0]["vip"] == VIP
    assert service["vips"][0]["decisions"]["new_flow"] == 1
    (generation,) = service["generations"]
    assert (generation["number"], generation["state"], generation["stage"]) == (
        1,
        "published",
        "live",
    )
    assert generation["fallback"] is None
    assert generation["weights"] == [0.5, 0.5]
    assert set(generation["drain"]) == {"accept_queue", "connections", "unread", "flows"}
    workers = {w["worker"]: w for w in generation["workers"]}
    assert workers[answer.worker] == {
        "worker": answer.worker,
        "pid": answer.pid,
        "restarts": 0,
        "new_flows": 1,
        "owned": 0,
    }
    text = run("status", "web").output
    assert f"supervisor {serve.process.pid}" in text
    assert "new flow 1" in text
    assert serve.end() == 0


@pytest.mark.root
def test_weights(run: Run, box: Box) -> None:
    """They say what they are then; what can't be is refused with status 2."""
    vip = f"{VIP}?spread=weights"
    serve = box.serve("--listen", vip, "--workers", "2").published(1)
    told: dict[str, Any] = json.loads(run("weights", "web", "1", "3", "--json").output)
    assert told == {"ok": True, "generation": 1, "weights": [0.25, 0.75]}
    assert json.loads(run("weights", "web", "0", "1", "--json").output)["weights"] == [0, 1]
    assert {box.ask().worker for _ in range(20)} == {1}
    wrong = run("weights", "web", "1")
    assert wrong.exit_code == 2
    assert "1 weights for 2 workers" in wrong.stderr
    assert run("weights", "web", "1", "1", "--generation", "7").exit_code == 3
    assert serve.end() == 0


@pytest.mark.root
def test_remove(run: Run, box: Box) -> None:
    """Only what nobody runs is removed; living workers have to be given up by force."""
    serve = box.serve("--listen", VIP).published(1)
    busy = run("remove", "web")
    assert busy.exit_code == 4
    assert f"is run by process {serve.process.pid}" in busy.stderr
    serve.kill()
    refused = run("remove", "web")
    assert refused.exit_code == 1
    assert "service web has live generations: 1" in refused.stderr
    assert run("release", "web").exit_code == 3, "no supervisor"
    assert run("remove", "web", "--force").exit_code == 0
    assert json.loads(run("status", "--json").output) == {"services": []}
    assert box.ask().generation == 1, "its worker is left alone"


@pytest.mark.root
def test_a_taken_address(box: Box) -> None:
    """The error names the VIP and the reason."""

    def take() -> subprocess.Popen[bytes]:
        script = "import socket, time; s = socket.socket(); s.bind(('127.0.0.1', 8080));"
        return subprocess.Popen(
            [sys.executable, "-c", f"{script} s.listen(); print(flush=True); time.sleep(100)"],
            stdout=subprocess.PIPE,
        )

    with box.netns.run(take) as other:
        assert other.stdout is not None
        other.stdout.readline()
        serve = box.serve("--listen", VIP)
        assert serve.wait() == 1
        other.kill()
    assert any(f"can't bind {VIP}: Address already in use" in line for line in serve.errors)


@pytest.mark.root
def test_without_privileges(box: Box) -> None:
    """Status 5 and what to do, from a process that is nobody."""
    script = (
        "import os, sys, zoneinfo\n"  # (what is imported later can not be read by nobody here)
        "import sockway.serve.config, sockway.serve.supervisor\n"
        "from sockway.cli import main\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"sys.argv = ['sockway', 'serve', '--listen', '{VIP}', '--', 'true']\n"
        "main()\n"
    )
    env = {**os.environ, "SOCKWAY_RUNTIME": str(box.runtime)}

    def nobody() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False
        )

    done = box.netns.run(nobody)
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("sockway: error: can't make ")
    assert "hint: run as root" in done.stderr


@pytest.mark.root
def test_a_reader_that_goes_away_is_no_error(box: Box) -> None:
    """`sockway status --watch --json | head -1` ends when its reader does."""

    def watch() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sockway", "status", "--watch", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=box.environment,
        )

    with box.netns.run(watch) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"services": []}
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.root
def test_another_change_of_the_service_is_waited_for_or_told(box: Box) -> None:
    """A service that a library user is releasing can't be released: status 4 and who it is."""
    serve = box.serve("--listen", VIP).published(1)

    def hold() -> None:
        with Service.open("web", [Vip.parse(VIP)]) as service, service.changing():
            done = box.cli("release", "web")
            assert done.returncode == 4
            assert f"service web is being changed by process {os.getpid()}" in done.stderr

    box.netns.run(hold)
    assert box.cli("release", "web").returncode == 0
    assert box.ask().generation == 2
    assert serve.end(signal.SIGINT) == 0


@pytest.mark.root
def test_text_for_people(box: Box) -> None:
    """`serve` without --json tells steps on standard error, and workers' lines with their place."""
    command = [sys.executable, "-m", "sockway", "serve", "--listen", VIP, "--name", "web", "--"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *LITTLE],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**box.environment, "LITTLE_READY": "line"},
        )

    with box.netns.run(start) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "1.0 | little is up\n"
        eventually(lambda: "published" in box.cli("status", "web").stdout, "a publish")
        box.note([w["pid"] for w in box.status()["generations"][0]["workers"]])
        done = box.cli("release", "web", "--wait")
        assert "generation 2 of web is published" in done.stdout
        assert "generation 1: settled" in done.stderr
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "sockway: web: generation 1: published (pids " in errors
    assert "sockway: web: generation 2: ended" in errors
