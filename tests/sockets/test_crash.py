"""kill -9 of a releasing process at every step: what was published serves, the rest is swept."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sockway import BusyError, Generation, NotFoundError, Service, Vip
from sockway.kernel import Netns
from tests.sockets.crash_child import AFTER, CREATING, PREPARING, VIPS

pytestmark = pytest.mark.root

PROJECT = Path(__file__).parents[2]
Start = Callable[[str, str], subprocess.Popen[str]]


@pytest.fixture
def start(inside: Netns, bpffs_root: Path) -> Iterator[Start]:
    """Start a child that gets to a step; its workers end with the test."""
    del inside, bpffs_root
    leash, held = os.pipe()
    children: list[subprocess.Popen[str]] = []

    def begin(step: str, action: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.sockets.crash_child", step, action, str(leash)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            pass_fds=[leash],
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline().strip() == step.partition(":")[2]
        return child

    yield begin
    os.close(held)
    os.close(leash)
    for child in children:
        child.kill()
        child.communicate()


def ask(port: int = 5000) -> int | None:
    """Which generation answers, if any."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            return int(sock.recv(16))
    except ConnectionRefusedError:
        return None


def arrays(service: Service) -> set[int]:
    """Generations that have an array in the router, whether they are live or not."""
    groups = [placed.group for placed in service.bound_vips()]
    seen = (Generation(service, number) for number in range(1, 6))
    return {g.number for g in seen if any(g._has_array(group) for group in groups)}


def take_over(root: Path, numbers: set[int]) -> None:
    """The next process finds the state, releases, and is left with its own and the live ones."""
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(Service.open("web", [Vip.parse(vip) for vip in VIPS]))
        serving = ask()
        generation = service.generation(workers=1)
        stack.callback(generation.release_all)
        assert ask() == serving
        generation.publish()
        assert answers(generation) == 2
        assert {g.number for g in service.generations} == numbers | {generation.number}
        assert arrays(service) == numbers | {generation.number}
        assert len(service.bound_vips()) == len(VIPS)
        assert [g.state for g in service.generations].count("published") == 1
        generation.release_all()
        with service.changing():
            service.collect()
        assert {g.number for g in service.generations} == arrays(service) == numbers
        # The published one is gone with its sockets: an older one that lives is published.
        published = service.published
        assert (published.number if published else None) == serving == ask()
        assert len(service.bound_vips()) == (len(VIPS) if numbers else 0)
        assert not list(root.rglob("@*"))


def answers(generation: Generation) -> int:
    """Connections that the generation's own listeners get, of one to each TCP VIP."""
    got = 0
    for vip, listener in generation.sockets(0).items():
        if vip.protocol == "tcp":
            listener.settimeout(5)
            with socket.create_connection((str(vip.address), vip.port)), listener.accept()[0]:
                got += 1
    return got


@pytest.mark.parametrize("step", CREATING)
def test_killed_while_the_service_is_made(start: Start, bpffs_root: Path, step: str) -> None:
    """There is a whole service or none, and the next start has one."""
    assert start(f"0:{step}", "die").wait() == -signal.SIGKILL
    assert Service.names() == (["web"] if step == "created" else [])
    if step != "created":
        with pytest.raises(NotFoundError):
            Service.attach("web")
    assert bool(list(bpffs_root.rglob("@new-*"))) == (step in {"pinning", "pinned"})
    take_over(bpffs_root, set())


@pytest.mark.parametrize(
    ("number", "step"), [(1, "bound"), (1, "started"), *((2, step) for step in PREPARING)]
)
def test_killed_while_a_generation_is_prepared(
    start: Start, bpffs_root: Path, number: int, step: str
) -> None:
    """Nobody gets to the new generation, and the old one serves on."""
    assert start(f"{number}:{step}", "die").wait() == -signal.SIGKILL
    assert ask() == ask(5001) == (1 if number == 2 else None)
    # A worker that was started lives, and so does its generation; nobody is sent to it.
    alive = {number} if step in {"started", "publishing"} else set()
    take_over(bpffs_root, alive | ({1} if number == 2 else set()))


@pytest.mark.parametrize("step", AFTER)
def test_killed_after_the_publish(start: Start, bpffs_root: Path, step: str) -> None:
    """The new generation serves, and the old one is there or gone, but not half."""
    assert start(f"2:{step}", "die").wait() == -signal.SIGKILL
    assert ask() == ask(5001) == 2
    take_over(bpffs_root, {2} if step in {"taking_out", "taken_out"} else {1, 2})


def test_of_two_releases_one_wins(start: Start) -> None:
    """The other is told at once, with the winner's process id; after its end it can go on."""
    child = start("1:filled", "halt")
    with Service.open("web", [Vip.parse(vip) for vip in VIPS]) as service:
        with pytest.raises(BusyError, match=f"process {child.pid}"):
            service.generation()
        with pytest.raises(BusyError):
            service.remove()
        child.kill()
        child.wait()
        with service.generation() as generation:
            assert generation.number == 2


def test_first_starts_at_once_share_one_state(inside: Netns, bpffs_root: Path) -> None:
    """Several processes find no service: all end up with the same one, and nothing is left."""
    del inside
    code = (
        "import sys; from sockway import Service, Vip\n"
        "sys.stdin.read()\n"
        "print(Service.open('web', [Vip.parse('tcp://[::]:5000')]).state.id_key.hex())"
    )
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(3)
        ]
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
            child.stdin = None
        keys = {child.communicate()[0] for child in children}
    assert len(keys) == 1
    assert len(keys.pop().strip()) == 32
    assert not list(bpffs_root.rglob("@*"))
