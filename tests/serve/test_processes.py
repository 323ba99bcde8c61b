"""Starting a worker's process, what it has then, and what it leaves in its files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sockway.drain import draining
from sockway.serve import become
from sockway.serve.identity import read_record, start_time
from sockway.serve.notify import Notifier, NotifyListener, parse, session_of
from sockway.serve.output import KEPT_LINES, Output, open_for_writing
from sockway.serve.process import Launch, Process
from sockway.serve.runtime import RuntimeDirectory, write_whole

LOOK = """
import json, os, signal, sys
fds = {int(fd): os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
       if os.path.exists(f"/proc/self/fd/{fd}")}
print(json.dumps({
    "fds": fds, "pid": os.getpid(), "listen": os.environ["LISTEN_PID"], "sid": os.getsid(0),
    "mask": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "status": open("/proc/self/status").read(), "cwd": os.getcwd(),
}))
"""


def launch(tmp_path: Path, *command: str, **more: Any) -> tuple[Launch, Path]:
    """A launch that prints into a file."""
    output = tmp_path / "output"
    made = Launch(
        command=command,
        environment=dict(os.environ),
        descriptors=more.pop("descriptors", ()),
        output=open_for_writing(output),
        pid_file=tmp_path / "pid",
        **more,
    )
    return made, output


async def test_a_process_has_its_sockets_and_nothing_else(tmp_path: Path) -> None:
    """Descriptors 3, 4, ... in the order asked for, whatever they were; a session of its own."""
    sockets = [socket.socket() for _ in range(4)]
    # The hard cases: a source that is a target of another.
    made, output = launch(
        tmp_path,
        sys.executable,
        "-c",
        LOOK,
        descriptors=[s.fileno() for s in reversed(sockets)],
        directory=tmp_path,
    )
    process = Process.start(made)
    assert await process.wait() == 0, output.read_text()
    found = json.loads(output.read_text())
    inodes = [f"socket:[{os.fstat(s.fileno()).st_ino}]" for s in reversed(sockets)]
    assert [found["fds"].get(str(fd)) for fd in range(3, 7)] == inodes
    assert {int(fd) for fd in found["fds"]} == set(range(7))
    assert found["pid"] == process.pid == found["sid"] == int(found["listen"])
    assert found["mask"] == []
    assert found["cwd"] == str(tmp_path)
    ignored = next(x for x in found["status"].splitlines() if x.startswith("SigIgn"))
    numbers = {n for n in range(1, 32) if int(ignored.split()[1], 16) & 1 << n - 1}
    assert numbers <= {signal.SIGPIPE, signal.SIGXFSZ}, "Python itself ignores those"
    assert read_record(made.pid_file) is not None
    for sock in sockets:
        sock.close()
    os.close(made.output)


async def test_a_broken_pipe_ends_a_shell_worker(tmp_path: Path) -> None:
    """What Python ignores is not ignored in the worker."""
    made, output = launch(tmp_path, "sh", "-c", "kill -PIPE $$; echo survived")
    assert await Process.start(made).wait() == -signal.SIGPIPE
    assert output.read_text() == ""
    os.close(made.output)


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """Exit status 127 and the reason, as from a shell."""
    made, output = launch(tmp_path, "/no/such/server")
    process = Process.start(made)
    assert await process.wait() == become.NOT_STARTED
    assert output.read_text() == "sockway: can't run /no/such/server: No such file or directory\n"
    assert process.describe_end() == "ended with status 127"
    os.close(made.output)


def test_without_its_supervisor_a_worker_does_not_begin(tmp_path: Path) -> None:
    """A process whose parent is not the supervisor (any more) ends, its record being there."""
    plan = {"pid_file": str(tmp_path / "pid"), "supervisor": 1, "first_free_fd": 3}
    ran = tmp_path / "ran"
    status = subprocess.run(
        [sys.executable, "-I", "-S", become.__file__, json.dumps(plan), "touch", str(ran)],
        check=False,
    ).returncode
    assert status == become.NOT_STARTED
    assert not ran.exists()
    assert read_record(tmp_path / "pid") is not None


async def test_what_it_leaves_behind_goes_with_it(tmp_path: Path) -> None:
    """A process that its worker started gets SIGTERM when the worker has ended."""
    made, output = launch(tmp_path, "sh", "-c", "sleep 1000 & echo $!; exit 4")
    process = Process.start(made)
    assert await process.wait() == 4
    left = int(output.read_text())
    for _ in range(100):
        if start_time(left) is None:
            break
        await asyncio.sleep(0.05)
    assert start_time(left) is None
    os.close(made.output)


async def test_only_the_recorded_process_is_adopted(tmp_path: Path) -> None:
    """The number alone is not enough: its start has to be the recorded one too."""
    made, _ = launch(tmp_path, "sleep", "1000")
    process = Process.start(made)
    for _ in range(500):
        if made.pid_file.exists():
            break
        await asyncio.sleep(0.01)
    record = read_record(made.pid_file)
    assert record is not None
    pid, started = record
    assert Process.adopt(pid, started + 1) is None
    adopted = Process.adopt(pid, started)
    assert adopted is not None
    adopted.kill()
    assert await process.wait() == -signal.SIGKILL
    await adopted.wait()
    assert adopted.status is None, "whose child it is not can't know"
    assert Process.adopt(pid, started) is None
    process.send(signal.SIGTERM)  # to nobody
    process.kill()
    os.close(made.output)


def test_output_is_read_line_by_line(tmp_path: Path) -> None:
    """Lines as they are ended, the last ones kept, what is no UTF-8 replaced."""
    lines: list[str] = []
    output = Output(tmp_path / "log", lines.append)
    output.read()
    writer = open_for_writing(tmp_path / "log")
    os.write(writer, b"one\ntw")
    output.read()
    assert lines == ["one"]
    os.write(writer, b"o\r\n\xff\nend")
    output.read()
    assert lines == ["one", "two", "\ufffd"]
    os.write(writer, b"\n" + b"".join(b"%d\n" % n for n in range(100)) + b"unended")
    output.close()
    assert lines[-2:] == ["99", "unended"]
    assert len(output.last) == KEPT_LINES
    os.close(writer)


def test_what_was_read_takes_no_room_and_is_not_read_again(tmp_path: Path) -> None:
    """A later reader goes on behind it; the file's blocks are given back."""
    path = tmp_path / "log"
    writer = open_for_writing(path)
    first: list[str] = []
    reader = Output(path, first.append)
    os.write(writer, b"x" * 99 + b"\n")
    for _ in range(10_000):
        os.write(writer, b"x" * 99 + b"\n")
    reader.read()
    assert len(first) == 10_001
    reader.close()
    assert path.stat().st_size == 1_000_100
    assert path.stat().st_blocks * 512 < 20_000
    os.write(writer, b"later\n")
    again: list[str] = []
    second = Output(path, again.append)
    second.read()
    second.close()
    # A hole ends at a block: of the last block, zeros may be read again.
    assert again[-1].lstrip("\0") == "later"
    assert len(again) == 1
    os.close(writer)


async def test_notifications_come_with_their_sender(tmp_path: Path) -> None:
    """The kernel says who sent one: a worker can't speak for another."""
    heard: list[tuple[int, dict[str, str]]] = []
    listener = NotifyListener(tmp_path / "n", lambda pid, fields: heard.append((pid, fields)))
    Notifier(str(tmp_path / "n")).send(READY=1, STATUS="fine")
    send = "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
    send += f"s.sendto(b'READY=1', {str(tmp_path / 'n')!r})"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", send, start_new_session=True)
    await child.wait()
    await asyncio.sleep(0.05)
    listener.close()
    assert heard == [
        (os.getpid(), {"READY": "1", "STATUS": "fine"}),
        (child.pid, {"READY": "1"}),
    ]
    assert session_of(os.getpid()) == os.getsid(0)
    assert session_of(child.pid) is None
    assert parse(b"A=1=2\n\nnonsense\n\xff=x") == {"A": "1=2", "\ufffd": "x"}


def test_telling_nobody_is_no_error(tmp_path: Path) -> None:
    """Neither without NOTIFY_SOCKET nor with one that nobody listens at."""
    Notifier(None).send(READY=1)
    Notifier(str(tmp_path / "nobody")).send(READY=1)
    Notifier("@sockway-test-nobody").reloading()


def test_the_drain_flag_reaches_who_has_it_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte, there and back, and nobody has to open the file again."""
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path))
    runtime = RuntimeDirectory("web")
    runtime.create()
    runtime.set_flag(3, draining=False)
    monkeypatch.setenv("SOCKWAY_DRAIN", str(runtime.flag(3)))
    assert not draining()
    runtime.set_flag(3, draining=True)
    assert draining()
    runtime.set_flag(3, draining=False)
    assert not draining()
    runtime.set_flag(3, draining=True)
    runtime.forget(3)
    assert draining(), "the file is gone, what is mapped stays"
    assert not runtime.flag(3).exists()


def test_no_flag_means_no_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside `sockway serve`, with a file that is not there, with an empty one."""
    monkeypatch.delenv("SOCKWAY_DRAIN", raising=False)
    assert not draining()
    monkeypatch.setenv("SOCKWAY_DRAIN", str(tmp_path / "no"))
    assert not draining()
    (tmp_path / "empty").touch()
    monkeypatch.setenv("SOCKWAY_DRAIN", str(tmp_path / "empty"))
    assert not draining()


def test_records_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader sees the old text or the new one; what can't be read counts as nothing."""
    monkeypatch.setenv("SOCKWAY_RUNTIME", str(tmp_path))
    runtime = RuntimeDirectory("web")
    runtime.create()
    runtime.write_record(2, {"stage": "live"})
    runtime.write_record(10, {"stage": "held"})
    assert runtime.generations() == [2, 10]
    assert runtime.read_record(2) == {"stage": "live"}
    assert runtime.read_record(3) == {}
    write_whole(runtime.record(2), "{")
    assert runtime.read_record(2) == {}
    assert [p.name for p in runtime.path.iterdir() if p.name.startswith(".")] == []
    runtime.forget(10)
    assert runtime.generations() == [2]
    runtime.remove()
    assert list(tmp_path.iterdir()) == []
