"""kill -9 of the supervisor right after each step: what was published serves on, and the next
supervisor takes over and clears away the rest.
"""  # noqa: D205 - one sentence

from __future__ import annotations

import json
import os
import signal
import sys

import pytest

from sockway.serve.release import Release, Retirement
from tests.serve.harness import LITTLE, VIP, Box, Supervised, eventually, load

pytestmark = pytest.mark.root

SPEC = {"name": "web", "listen": [VIP], "command": list(LITTLE), "linger": 1.0, "hold": 0.1}
AFTER_PUBLISH = [step for step in Retirement.STEPS if step != "ended"]


def crash(box: Box, step: str, generation: int) -> Supervised:
    """A supervisor that dies at this step of its first or second generation."""
    command = [sys.executable, "-m", "tests.serve.crash_child", json.dumps(SPEC), step]
    supervised = box.start([*command, str(generation)])
    if not (generation == 1 and step in Release.STEPS):
        supervised.published(1)
        supervised.send(signal.SIGHUP)
    assert supervised.wait() == -signal.SIGKILL
    return supervised


def take_over(box: Box, number: int) -> None:
    """Start an ordinary supervisor; it publishes `number`, and only that one is left."""
    serve = box.serve("--listen", VIP, "--linger", "0").published(number)
    answer = box.ask()
    assert answer.generation == number
    eventually(lambda: box.alive() == [answer.pid], f"one worker; {box.seen} {serve.steps}")
    eventually(lambda: [g["number"] for g in box.status()["generations"]] == [number], "one left")
    # Its files go after its place in the router.
    eventually(lambda: box.generations_with_files() == {f"generation-{number}"}, "no others' files")
    # The router must not be left in the state of a probe that died with the supervisor.
    box.release(wait=True)
    assert box.ask().generation == number + 1
    assert serve.end() == 0
    assert box.alive() == []
    assert list(box.runtime.rglob("*")) == []


@pytest.mark.parametrize("step", Release.STEPS)
def test_killed_in_the_first_release(box: Box, step: str) -> None:
    """The next start publishes a generation, and what the first left is gone."""
    crash(box, step, 1)
    if step == "published":
        assert box.ask().generation == 1
    take_over(box, 2)


@pytest.mark.parametrize("step", Release.STEPS)
def test_killed_in_a_release(box: Box, step: str) -> None:
    """The old generation serves on, up to the publish; the new one from then on."""
    crash(box, step, 2)
    assert box.ask().generation == (2 if step == "published" else 1)
    take_over(box, 3)


@pytest.mark.parametrize("step", AFTER_PUBLISH)
def test_killed_in_a_retirement(box: Box, step: str) -> None:
    """The new generation serves on, and the old one is retired by the next supervisor."""
    crash(box, step, 1)
    assert box.ask().generation == 2
    take_over(box, 3)


def test_killed_after_a_retirement(box: Box) -> None:
    """There is nothing to clear away, and the published generation is taken over."""
    crash(box, "ended", 1)
    assert box.ask().generation == 2
    take_over(box, 3)


def test_nothing_is_lost_between_two_supervisors(box: Box) -> None:
    """Under load: kill -9 of the supervisor, a while without one, the next one takes over."""
    first = box.serve("--listen", VIP).published(1)
    with load(box.netns) as counted:
        eventually(lambda: len(counted.answers) > 50, "answers")
        first.kill()
        before = len(counted.answers)
        eventually(lambda: len(counted.answers) > before + 50, "answers without a supervisor")
        assert box.status()["supervisor"] is None
        second = box.serve("--listen", VIP).published(2)
        second.wait_step("ended", generation=1)
    assert counted.failures == []
    assert second.end() == 0


def test_first_generation_that_fails_leaves_the_orphans_alone(box: Box) -> None:
    """A next supervisor whose generation does not get ready ends; the orphans serve on."""
    box.serve("--listen", VIP).published(1).kill()
    second = box.serve("--listen", VIP, LITTLE_READY="die")
    assert second.wait() == 1
    assert box.ask().generation == 1
    take_over(box, 3)


def test_rollback_and_drain_without_a_supervisor(box: Box) -> None:
    """Both work on what is pinned and on records alone."""
    serve = box.serve("--listen", VIP, "--hold", "60").published(1)
    box.release()
    serve.wait_step("held", generation=1)
    serve.kill()
    done = box.cli("rollback", "web", "--json")
    assert json.loads(done.stdout) == {"ok": True, "generation": 1}
    assert box.ask().generation == 1
    assert box.cli("drain", "web", "1").returncode == 1, "it is published"
    assert box.cli("drain", "web", "2").returncode == 0
    assert [g["number"] for g in box.status()["generations"]] == [1]
    assert box.ask().generation == 1
    take_over(box, 3)


def test_records_are_lost(box: Box) -> None:
    """Without its runtime directory an orphan is still found, by the sockets that it holds."""
    box.serve("--listen", VIP).published(1).kill()
    for path in box.runtime.rglob("generation-*"):
        path.unlink()
    take_over(box, 2)


def test_a_number_that_is_another_process_now_is_not_signalled(box: Box) -> None:
    """A record whose process ended and whose number was given away does no harm."""
    box.serve("--listen", VIP).published(1).kill()
    os.kill(box.ask().pid, signal.SIGKILL)
    record = next(box.runtime.rglob("generation-1.0.pid"))
    record.write_text(f"{os.getpid()} 1\n")
    take_over(box, 2)


def test_the_old_and_the_new_process_may_die_too(box: Box) -> None:
    """Kill -9 of a worker amid a release: the old one's is restarted, the new one's fails it."""
    serve = box.serve("--listen", VIP, LITTLE_READY="late:3").published(1)
    serve.send(signal.SIGHUP)
    new = serve.wait_step("spawned", generation=2)["pids"][0]
    os.kill(box.ask().pid, signal.SIGKILL)
    serve.wait_step("restarted", generation=1)
    os.kill(new, signal.SIGKILL)
    failed = serve.wait_step("failed", generation=2)
    assert failed["error"] == "worker 0 of generation 2 was ended by SIGKILL before it was ready"
    assert box.ask().generation == 1
    assert serve.end() == 0
