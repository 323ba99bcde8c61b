"""`sockway serve --takeover`: releases in user space, and whoever dies at whatever moment."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sockway.errors import ConfigError, SockwayError
from sockway.serve.config import Source
from sockway.serve.takeover import check
from tests.serve.harness import VIP, Box, Supervised, load

pytestmark = pytest.mark.root

UDP = "udp://127.0.0.1:4433?flow=tuple"
PAIR = (sys.executable, "-m", "sockway.lab.servers.pair")
BOTH = ("--takeover", "--listen", VIP, "--listen", UDP)


def eventually(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def serve(
    box: Box, *options: str, command: tuple[str, ...] = PAIR, linger: float = 2
) -> Supervised:
    """A supervisor whose releases are takeovers."""
    return box.serve(*BOTH, "--linger", str(linger), *options, command=command)


class Flow:
    """A UDP flow from the box's namespace."""

    def __init__(self, box: Box) -> None:
        """Open it; the box closes it."""
        self.sock = box.netns.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.sock.connect(("127.0.0.1", 4433))
        box.sockets.append(self.sock)

    def owner(self) -> int:
        """The generation that answers; one datagram may be lost when a process dies."""
        for _ in range(5):
            self.sock.settimeout(1)
            try:
                self.sock.send(b"x")
                return int(self.sock.recv(100).split()[1])
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.05)
        raise AssertionError("nobody answers")


def test_a_release_in_place(box: Box) -> None:
    """Nothing fails, old flows are forwarded, new ones are the new generation's."""
    supervised = serve(box, "--workers", "2").published(1)
    with load(box.netns) as clients:
        old = Flow(box)
        assert old.owner() == 1
        assert box.release()["generation"] == 2
        assert (old.owner(), Flow(box).owner(), box.ask().generation) == (1, 2, 2)
        status = box.status()
        assert [g["number"] for g in status["generations"]] == [2, 1]
        assert status["forwarding"]["forwarded"] > 0
        told = box.cli("status", "web")
        assert "released by takeover" in told.stdout
        supervised.wait_step("ended", generation=1)
        assert len(clients.answers) > 100
    assert clients.failures == []
    assert old.owner() == 2
    assert supervised.end() == 0
    assert box.alive() == []
    assert list(box.runtime.rglob("*")) == []


def test_another_supervisor_takes_over(box: Box) -> None:
    """The first one drains and ends by itself; SIGHUP releases, too."""
    first = serve(box).published(1)
    with load(box.netns) as clients:
        old = Flow(box)
        assert old.owner() == 1
        second = serve(box).published(2)
        assert (old.owner(), Flow(box).owner()) == (1, 2)
        assert first.wait() == 0
        assert [step["step"] for step in first.steps][-1] == "ended"
        second.send(signal.SIGHUP)
        second.published(3)
        assert box.ask().generation == 3
    assert clients.failures == []
    assert second.end() == 0
    assert box.alive() == []
    assert list(box.runtime.rglob("*")) == []


def test_a_generation_that_does_not_serve(box: Box) -> None:
    """It ends, with what it printed; who served goes on, whether by this supervisor or another."""
    supervised = serve(box, "--env", "BREAK=no").published(1)
    flow = Flow(box)
    assert flow.owner() == 1
    other = serve(box, command=(sys.executable, "-m", "tests.serve.nothing"))
    assert other.wait() == 1
    assert any("No module named" in line for line in other.errors)
    late = serve(box, "--ready-timeout", "1", command=(sys.executable, "-m", "http.server", "9"))
    assert late.wait() == 1
    assert (flow.owner(), box.ask().generation) == (1, 1)
    assert box.release()["generation"] == 4  # numbers are not given twice
    assert box.ask().generation == 4
    assert supervised.end() == 0


def test_a_new_worker_that_dies_while_the_old_one_drains(box: Box) -> None:
    """The old one takes its sockets back, until the new one is there again."""
    supervised = serve(box, linger=8).published(1)
    old = Flow(box)
    assert old.owner() == 1
    box.release()
    new = Flow(box)
    assert new.owner() == 2
    os.kill(box.ask().pid, signal.SIGKILL)
    assert old.owner() == 1
    died = supervised.wait_step("died", generation=2)
    assert died["how"] == "was ended by SIGKILL"
    supervised.wait_step("restarted", generation=2)
    eventually(lambda: box.ask().generation == 2, "the new generation serves again")
    assert old.owner() == 1
    assert supervised.end() == 0
    assert box.alive() == []


def test_a_worker_that_dies_is_restarted(box: Box) -> None:
    """Without one to take over from it binds itself."""
    supervised = serve(box).published(1)
    os.kill(box.ask().pid, signal.SIGKILL)
    supervised.wait_step("restarted")
    eventually(lambda: answers(box), "it serves again")
    assert supervised.end() == 0


def answers(box: Box) -> bool:
    """Whether anybody does."""
    try:
        return box.ask().generation > 0
    except OSError:
        return False


def test_a_supervisor_that_is_killed(box: Box) -> None:
    """Its workers serve on; the next one's take over from them, and it ends them."""
    first = serve(box).published(1)
    old = Flow(box)
    assert old.owner() == 1
    first.kill()
    assert (old.owner(), box.ask().generation) == (1, 1)
    with load(box.netns) as clients:
        second = serve(box).published(2)
        assert second.wait_step("adopted")["generation"] == 1
        assert (old.owner(), box.ask().generation) == (1, 2)
        second.wait_step("ended", generation=1)
    assert clients.failures == []
    assert second.end() == 0
    assert box.alive() == []
    assert list(box.runtime.rglob("*")) == []


@pytest.mark.parametrize("by", ["the first", "a third"])
def test_a_new_supervisor_that_is_killed_amid_its_release(box: Box, by: str) -> None:
    """Whichever supervisor releases next ends what it left."""
    first = serve(box).published(1)
    second = serve(box)
    second.wait_step("spawned")
    second.kill()
    time.sleep(1)  # its workers may have taken over meanwhile, or not
    assert box.ask().generation in {1, 2}
    if by == "the first":
        last = first
        assert box.release(wait=True)["generation"] == 3
    else:
        last = serve(box).published(3)
        assert first.wait() == 0
    eventually(lambda: box.alive() == [box.ask().pid], f"one worker; {box.seen}")
    assert box.ask().generation == 3
    assert last.end() == 0
    assert box.alive() == []
    assert list(box.runtime.rglob("*")) == []


def test_what_a_killed_supervisor_left_takes_nothing_back(box: Box) -> None:
    """Its worker would have served later: the next release ends it, and is a takeover as any."""
    supervised = serve(box, linger=8).published(1)
    old = Flow(box)
    assert old.owner() == 1
    second = serve(box, command=(sys.executable, "-m", "tests.serve.late_pair"))
    spawned = second.wait_step("spawned")
    eventually(lambda: Path(box.runtime, "has-sockets").exists(), "it has the sockets")
    second.kill()
    with load(box.netns) as clients:
        assert box.release()["generation"] == 3
        assert not set(spawned["pids"]) & set(box.alive())
        young = Flow(box)
        assert young.owner() == 3
        time.sleep(3)  # it would have served now
        assert {Flow(box).owner() for _ in range(50)} == {3}
        assert box.release()["generation"] == 4
        assert (old.owner(), young.owner()) == (1, 3)
        assert {Flow(box).owner() for _ in range(50)} == {4}
        assert box.ask().generation == 4
    assert clients.failures == []
    assert supervised.end() == 0
    assert box.alive() == []


def test_all_are_killed(box: Box) -> None:
    """What is left in files is in nobody's way."""
    first = serve(box, "--workers", "2").published(1)
    pids = box.alive()
    first.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    second = serve(box, "--workers", "1").published(2)
    assert box.ask().generation == 2
    assert second.end() == 0
    assert list(box.runtime.rglob("*")) == []


def test_vips_may_change_and_workers_may_not(box: Box) -> None:
    """A VIP that is new is bound, one that is gone is let go; one worker has one predecessor."""
    first = serve(box).published(1)
    refused = serve(box, "--workers", "2")
    assert refused.wait() == 2
    assert "has 1 workers" in refused.errors[0]
    flow = Flow(box)
    assert flow.owner() == 1
    web = "tcp://127.0.0.1:8081"
    second = box.serve(
        "--takeover", "--listen", UDP, "--listen", web, "--linger", "0", command=PAIR
    )
    second.published(2)
    assert flow.owner() in {1, 2}
    assert first.wait() == 0
    assert flow.owner() == 2
    with pytest.raises(OSError):
        box.ask()
    box.netns.run(lambda: socket.create_connection(("127.0.0.1", 8081))).close()
    assert second.end() == 0


def test_options_of_vips_may_change(box: Box) -> None:
    """A VIP with another name is the same sockets: none of the old process's has new traffic."""
    serve(box, linger=8).published(1)
    old = Flow(box)
    assert old.owner() == 1
    with load(box.netns) as clients:
        second = box.serve(
            "--takeover", "--listen", f"{VIP}?name=web", "--listen", f"{UDP}&name=echo",
            command=PAIR,
        ).published(2)  # fmt: skip
        assert {Flow(box).owner() for _ in range(50)} == {2}
        assert {box.ask().generation for _ in range(50)} == {2}
        assert old.owner() == 1
    assert clients.failures == []
    assert second.end() == 0


def test_a_tcp_vip_goes_and_comes_back(box: Box) -> None:
    """The draining process has it no more: it is refused at once, and then the third one's."""
    serve(box, linger=8).published(1)
    assert box.ask().generation == 1
    second = box.serve(
        "--takeover", "--listen", UDP, "--listen", "tcp://127.0.0.1:8081", "--linger", "8",
        command=PAIR,
    ).published(2)  # fmt: skip
    with pytest.raises(ConnectionRefusedError):
        box.ask()
    os.kill(second.wait_step("spawned")["pids"][0], signal.SIGKILL)
    eventually(lambda: answers(box), "the first one listens again")
    second.wait_step("restarted")
    eventually(lambda: not answers(box), "the second one has taken over again")
    third = serve(box).published(3)
    assert {box.ask().generation for _ in range(50)} == {3}
    assert third.end() == 0


def test_the_router_and_takeover_keep_apart(box: Box) -> None:
    """A service of the one kind is not taken over by the other."""
    routed = box.serve("--listen", VIP).published(1)
    refused = serve(box)
    assert refused.wait() == 2
    assert "without --takeover" in refused.errors[0]
    routed.kill()
    refused = serve(box)
    assert refused.wait() == 2
    assert "is the router's" in refused.errors[0]
    for pid in box.alive():
        os.kill(pid, signal.SIGKILL)


def test_routed_beside_takeover(box: Box) -> None:
    """Nor the other way round, and there is no way back."""
    taken = serve(box).published(1)
    refused = box.serve("--listen", VIP)
    assert refused.wait() == 4
    assert "already" in refused.errors[0]
    assert box.cli("rollback", "web").returncode == 2
    assert box.ask().generation == 1
    assert taken.end() == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"command": ["nginx", "-g", "daemon off;"]}, "nginx can't take over"),
        ({"command": ["/bin/sleep", "1"]}, "sleep can't take over"),
        ({"command": [sys.executable, "-c", "pass"]}, "can't take over"),
        ({"flows": 10}, "--flows is not for --takeover"),
        ({"user": "nobody"}, "--user is not for --takeover"),
        ({"ready": "exec"}, "--ready is not for --takeover"),
        ({"hold": 5.0}, "--hold is not for --takeover"),
    ],
)
def test_what_takeover_can_not_do_is_refused(fields: dict[str, object], words: str) -> None:
    """In one error, before anything is started."""
    given = {"command": list(PAIR), "listen": [VIP], "name": "web", "takeover": True}
    check(Source(options=given).read())
    with pytest.raises(ConfigError, match=words) as raised:
        check(Source(options={**given, **fields}).read())
    assert isinstance(raised.value, SockwayError)
    assert raised.value.hint
