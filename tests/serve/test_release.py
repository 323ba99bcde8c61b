"""Releases by a real supervisor, with real workers, on a real kernel."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.serve.harness import LITTLE, VIP, Box, eventually, load

pytestmark = pytest.mark.root


def test_releases_under_load_lose_nothing(box: Box) -> None:
    """Clients that open a connection for each request see no failure over five releases."""
    serve = box.serve("--listen", VIP, "--workers", "2").published(1)
    with load(box.netns) as counted:
        for generation in range(2, 7):
            assert box.release()["generation"] == generation
        serve.wait_step("ended", generation=5)
    assert counted.failures == []
    assert len(counted.answers) > 100
    assert {answer.split()[1] for answer in counted.answers} == set("123456")
    assert serve.end() == 0
    assert box.alive() == []


def test_a_release_without_wait_for_settling_can_fail(box: Box) -> None:
    """The same load sees failures when workers are killed at once: the check above can fail."""
    serve = box.serve("--listen", VIP, "--stop-signal", "KILL").published(1)
    with load(box.netns) as counted:
        eventually(lambda: len(counted.answers) > 20, "answers")
        for _ in range(3):
            pid = box.ask().pid
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: pid not in box.alive(), "death")
            serve.wait_step("restarted")
            serve.steps.clear()
    assert counted.failures != []


def test_a_generation_that_does_not_get_ready_is_ended(box: Box, tmp_path: Path) -> None:
    """The release fails with status 1 and the old generation serves on."""
    config = tmp_path / "web.toml"
    text = (
        f'listen = ["{VIP}"]\ncommand = {json.dumps(LITTLE)}\n'
        "ready = 'notify'\nready_timeout = 1.0\n[env]\nLITTLE_READY = '{}'\n"
    )
    config.write_text(text.replace("{}", "notify"))
    serve = box.serve("--config", str(config)).published(1)
    before = box.ask()
    config.write_text(text.replace("{}", "never"))
    done = box.cli("release", "web")
    assert done.returncode == 1
    assert "worker 0 of generation 2 was not ready after 1 s" in done.stderr
    assert box.ask() == before
    serve.wait_step("failed", generation=2)
    eventually(lambda: box.alive() == [before.pid], "the end of generation 2")
    assert [g["number"] for g in box.status()["generations"]] == [1]
    assert serve.end() == 0


def test_a_worker_that_dies_before_it_is_ready_tells_why(box: Box) -> None:
    """The error has how it ended and its last lines; a first generation's ends the supervisor."""
    serve = box.serve("--listen", VIP, LITTLE_READY="die")
    assert serve.wait() == 1
    error = next(step for step in serve.steps if step.get("ok") is False)
    assert error["error"] == "worker 0 of generation 1 ended with status 7 before it was ready"
    assert error["output"] == ["little: there is no database"]
    assert any("there is no database" in line for line in serve.errors)
    assert box.cli("status", "web").returncode == 3, "nothing of it is left"


def test_two_releases_at_once(box: Box) -> None:
    """The second gets a clear error with exit status 4, and the first comes about."""
    serve = box.serve("--listen", VIP, LITTLE_READY="late:6").published(1)
    serve.send(signal.SIGHUP)
    serve.wait_step("opened", generation=2)
    done = box.cli("release", "web", "--json")
    assert done.returncode == 4
    error = json.loads(done.stdout)
    pid = serve.process.pid
    assert error["error"] == f"release of generation 2 of web in progress by process {pid}"
    assert error["kind"] == "BusyError"
    serve.published(2)
    assert serve.end() == 0


def test_a_second_supervisor_is_refused(box: Box) -> None:
    """A service has one supervisor; the other says whose it is and ends with status 4."""
    first = box.serve("--listen", VIP).published(1)
    second = box.serve("--listen", VIP)
    assert second.wait() == 4
    assert f"is run by process {first.process.pid} already" in "\n".join(second.errors)
    assert box.ask().generation == 1
    assert first.end() == 0


def test_hangup_releases_with_the_file_read_again(box: Box, tmp_path: Path) -> None:
    """SIGHUP is a release, with what the file says now; a broken file fails it."""
    config = tmp_path / "web.toml"
    command = f"command = {json.dumps(LITTLE)}\n"
    config.write_text(f'listen = ["{VIP}"]\n{command}')
    serve = box.serve("--config", str(config)).published(1)
    config.write_text(f'listen = ["{VIP}", "tcp://127.0.0.1:8081"]\nworkers = 2\n{command}')
    serve.send(signal.SIGHUP)
    serve.published(2)
    status = box.status()
    assert [vip["vip"] for vip in status["vips"]] == [VIP, "tcp://127.0.0.1:8081"]
    assert len(status["generations"][0]["workers"]) == 2
    config.write_text(f"{command}listen = 5")
    serve.send(signal.SIGHUP)
    failed = serve.wait_step("failed")
    assert f"{config}, line 2: listen" in failed["error"]
    assert box.ask().generation == 2
    assert serve.end() == 0


def test_a_dead_worker_is_restarted_in_its_generation(box: Box) -> None:
    """It comes back in its place with new sockets, and the count of restarts tells."""
    serve = box.serve("--listen", VIP).published(1)
    first = box.ask()
    os.kill(first.pid, signal.SIGKILL)
    died = serve.wait_step("died", worker=0)
    assert died["how"] == "was ended by SIGKILL"
    serve.wait_step("restarted", worker=0)
    again = box.ask()
    assert (again.generation, again.worker) == (1, 0)
    assert again.pid != first.pid
    assert box.status()["generations"][0]["workers"][0]["restarts"] == 1
    assert serve.end() == 0


def test_rollback_while_the_old_one_is_held(box: Box) -> None:
    """One command publishes the old generation again, and the new one drains."""
    serve = box.serve("--listen", VIP, "--hold", "60").published(1)
    old = box.ask()
    box.release()
    assert box.ask().generation == 2
    done = box.cli("rollback", "web", "--json")
    assert json.loads(done.stdout) == {"ok": True, "generation": 1, "before": 2}
    assert box.ask() == old
    serve.wait_step("ended", generation=2)
    assert [g["stage"] for g in box.status()["generations"]] == ["live"]
    refused = box.cli("rollback", "web")
    assert refused.returncode == 3
    assert "no generation to roll back to" in refused.stderr
    os.kill(old.pid, signal.SIGKILL)
    serve.wait_step("restarted", generation=1)
    assert serve.end() == 0


def test_drain_ends_a_hold(box: Box) -> None:
    """`sockway drain` retires a held generation now; the published one is refused."""
    serve = box.serve("--listen", VIP, "--hold", "60").published(1)
    box.release()
    serve.wait_step("held", generation=1)
    refused = box.cli("drain", "web", "2")
    assert refused.returncode == 1
    assert "generation 2 of web is published" in refused.stderr
    assert box.cli("drain", "web", "9").returncode == 3
    assert box.cli("drain", "web", "1", "--wait").returncode == 0
    assert [g["number"] for g in box.status()["generations"]] == [2]
    assert serve.end() == 0


def test_falls_back_where_the_new_generation_keeps_dying(box: Box) -> None:
    """The held generation is published again by itself."""
    serve = box.serve("--listen", VIP, "--hold", "60").published(1)
    box.release()
    for _ in range(2):
        answer = box.ask()
        assert answer.generation == 2
        serve.steps.clear()
        os.kill(answer.pid, signal.SIGKILL)
        serve.wait_step("died", generation=2)
        eventually(
            lambda: any(s["step"] in {"restarted", "fell_back"} for s in serve.steps), "a reaction"
        )
    fell = serve.wait_step("fell_back")
    assert (fell["generation"], fell["broken"]) == (1, 2)
    assert box.ask().generation == 1
    assert serve.end() == 0


def test_a_stubborn_worker_is_killed_at_the_deadline(box: Box) -> None:
    """SIGTERM, then SIGKILL after --drain-timeout; the release itself does not wait for that."""
    options = ("--listen", VIP, "--drain-timeout", "0.5", "--linger", "0")
    serve = box.serve(*options, LITTLE_STUBBORN="1").published(1)
    old = box.ask()
    box.release()
    stopped = serve.wait_step("stopped", generation=1)
    assert stopped["killed"] == [old.pid]
    serve.wait_step("ended", generation=1)
    assert serve.end() == 0, "killed at the deadline is the ordinary way for it"


def test_a_second_signal_ends_at_once(box: Box) -> None:
    """The first SIGTERM waits for workers; the second kills them, and the status is 1."""
    options = ("--listen", VIP, "--drain-timeout", "60")
    serve = box.serve(*options, LITTLE_STUBBORN="1").published(1)
    serve.send(signal.SIGTERM)
    serve.wait_step("stopping")
    began = time.monotonic()
    assert serve.end() == 1
    assert time.monotonic() - began < 10
    assert box.alive() == []
    assert box.cli("status", "web").returncode == 3
    assert list(box.runtime.rglob("*")) == []


def test_a_request_under_way_is_finished(box: Box) -> None:
    """An answer that takes longer than the release arrives whole, from the old worker."""
    serve = box.serve("--listen", VIP, "--linger", "0").published(1)
    answers: list[str] = []
    slow = threading.Thread(target=lambda: answers.append(box.get("/slow/2")))
    slow.start()
    time.sleep(0.3)
    box.release()
    slow.join()
    assert answers[0].split()[1] == "1"
    assert serve.end() == 0


def test_workers_get_their_environment(box: Box) -> None:
    """LISTEN_*, placeholders in --env, the service's own variables; not the manager's socket."""
    serve = box.serve(
        *("--listen", f"{VIP}?name=web", "--listen", "udp://127.0.0.1:4433?flow=quic&name=h3"),
        *("--env", "FDS={fd:h3};{fd0} {generation}.{worker} {other}", "--ready", "notify"),
        NOTIFY_SOCKET="/nonexistent",
        LISTEN_PID="1",
    ).published(1)
    found = json.loads(box.get("/env"))
    assert found["LISTEN_FDS"] == "2"
    assert found["LISTEN_FDNAMES"] == "web:h3"
    assert int(found["LISTEN_PID"]) == box.ask().pid
    assert found["FDS"] == "4;3 1.0 {other}"
    assert found["NOTIFY_SOCKET"].startswith(str(box.runtime))
    assert (found["SOCKWAY_SERVICE"], found["SOCKWAY_GENERATION"]) == ("web", "1")
    assert len(bytes.fromhex(found["SOCKWAY_ID_KEY"])) == 16
    assert found["SOCKWAY_ID_LENGTH"] == "16"
    assert serve.end() == 0


def test_workers_run_as_the_user_asked_for(box: Box) -> None:
    """They lose root, and can still say READY=1 and see their drain flag."""
    nobody = pwd.getpwnam("nobody")
    script = (
        "test $(id -u) = $(id -u nobody) && test $USER = nobody && test -w $NOTIFY_SOCKET &&"
        " test $(head -c 1 $SOCKWAY_DRAIN) = 0 && : >/dev/stderr && echo fine; exec sleep 1000"
    )
    options = ("--listen", VIP, "--user", "nobody", "--ready", "log:fine", "--ready-timeout", "5")
    serve = box.serve(*options, command=("sh", "-c", script)).published(1)
    status = Path(f"/proc/{serve.wait_step('spawned')['pids'][0]}/status").read_text()
    groups = " ".join(map(str, os.getgrouplist("nobody", nobody.pw_gid)))
    assert f"Groups:\t{groups} \n" in status
    assert "CapEff:\t0000000000000000" in status
    # The sockets are the supervisor's, so that the next ones can join their ports.
    box.release()
    assert serve.end() == 0


@pytest.mark.parametrize("ready", ["tcp", "http:/", "log:little is (up|there)", "exec", "auto"])
def test_signs_of_readiness(box: Box, ready: str) -> None:
    """Each kind publishes a worker that is up, for the first generation and the next."""
    little = "line" if ready.startswith("log") else "late:0.5"
    serve = box.serve("--listen", VIP, "--ready", ready, LITTLE_READY=little).published(1)
    box.release()
    assert box.ask().generation == 2
    assert serve.end() == 0


@pytest.mark.parametrize("ready", ["tcp", "http:/", "log:little is up", "notify"])
def test_signs_of_readiness_can_fail(box: Box, ready: str) -> None:
    """A worker that sleeps is not ready, although the kernel completes handshakes for it."""
    options = ("--listen", VIP, "--ready", ready, "--ready-timeout", "1")
    serve = box.serve(*options, LITTLE_READY="never")
    assert serve.wait() == 1
    assert "was not ready after 1 s" in "\n".join(serve.errors)


def test_nobody_reads_what_it_tells(box: Box) -> None:
    """A supervisor whose output is a closed pipe serves, releases and ends as ever."""
    serve = box.serve("--listen", VIP, LITTLE_READY="line").published(1)
    null = os.open(os.devnull, os.O_RDONLY)
    for stream in (serve.process.stdout, serve.process.stderr):
        assert stream is not None
        os.dup2(null, stream.fileno())  # in place of the reading end
    os.close(null)
    pids = {box.release()["generation"]: box.ask().pid for _ in range(2)}
    assert set(pids) == {2, 3}
    box.note(list(pids.values()))
    serve.send(signal.SIGTERM)
    assert serve.process.wait(20) == 0
    assert box.alive() == []


def test_systemd_is_told(box: Box) -> None:
    """READY, RELOADING with the clock, READY again, STOPPING: as Type=notify-reload wants it."""
    path = box.runtime / "manager"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(10)
        serve = box.serve("--listen", VIP, NOTIFY_SOCKET=str(path)).published(1)
        serve.send(signal.SIGHUP)
        serve.published(2)
        assert serve.end() == 0
        manager.settimeout(0.1)
        told: list[dict[str, str]] = []
        while True:
            try:
                lines = manager.recv(4096).decode().split("\n")
            except TimeoutError:
                break
            told.append(dict(line.split("=", 1) for line in lines))
    words = [next(w for w in ("READY", "RELOADING", "STOPPING", "MAINPID") if w in m) for m in told]
    assert words == ["RELOADING", "READY", "MAINPID", "RELOADING", "READY", "STOPPING"]
    clocks = [int(m["MONOTONIC_USEC"]) for m in told if "RELOADING" in m]
    assert 0 < clocks[0] < clocks[1] <= time.monotonic_ns() // 1000
    assert told[-2]["STATUS"] == "Generation 2 is published"
    path.unlink()
