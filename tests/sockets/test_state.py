"""The pinned state: found again, refused, upgraded, removed; and what a service may not do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sockway import (
    BusyError,
    ConfigError,
    IncompatibleError,
    NotFoundError,
    Service,
    StateError,
    Vip,
)
from sockway.kernel import BpfObject, Netns, enable_run_stats
from sockway.sockets import layout
from sockway.sockets import state as router_state
from tests.sockets.conftest import Open
from tests.sockets.harness import Receivers, client, publish, target

pytestmark = pytest.mark.root

NOBODY = 65534
TCP, UDP = Vip.parse("tcp://127.0.0.1:5000"), Vip.parse("udp://127.0.0.1:5000")


def test_a_service_is_found_by_its_name(open_service: Open, receivers: Receivers) -> None:
    """Attached from elsewhere it shows the same generations, counters and keys."""
    service = open_service(TCP, UDP)
    publish(service, receivers)
    open_service("tcp://127.0.0.1:6000", name="api")
    assert Service.names() == ["api", "web"]
    with Service.attach("web") as seen:
        assert [g.number for g in seen.generations] == [1]
        assert [p.vip for p in seen.bound_vips()] == [TCP, UDP]
        assert seen.state.id_key == service.state.id_key
        with client(UDP) as sock:
            sock.sendto(b"x", target(UDP))
            receivers.expect()
        assert seen.counters() == service.counters()
        assert seen.counters().workers[1][0].packets + seen.counters().workers[1][1].packets == 1
        with pytest.raises(ConfigError, match="attached"):
            seen.generation()
        with pytest.raises(StateError, match="in this process"):
            seen.get(1).sockets(0)


def test_a_service_that_is_not_there_is_not_found(inside: Netns, bpffs_root: Path) -> None:
    """The error names it and says how to list those that are there."""
    del inside, bpffs_root
    assert Service.names() == []
    with pytest.raises(NotFoundError, match="'web'") as caught:
        Service.attach("web")
    assert "sockway status" in str(caught.value)


def test_removal_leaves_nothing(open_service: Open, receivers: Receivers, bpffs_root: Path) -> None:
    """Not a pin and not a directory; sockets that are open still get what the kernel gives them."""
    service = open_service(TCP)
    publish(service, receivers)
    service.remove()
    own = {"maps.debug", "progs.debug"}  # every bpffs has these of the kernel
    assert {path.name for path in bpffs_root.iterdir()} <= own
    with socket.create_connection(target(TCP)):
        receivers.expect()
    with pytest.raises(NotFoundError):
        Service.attach("web")


def test_the_right_to_change_is_one_process_s(open_service: Open) -> None:
    """Also within a process: a second release, a rollback and a removal wait for the first."""
    service = open_service(TCP)
    with service.generation():
        for change in (service.generation, service.remove, open_service(TCP).generation):
            with pytest.raises(BusyError, match=f"process {os.getpid()}"):
                change()
    assert service.generations == []
    with service.generation() as generation:
        generation.publish()
        with pytest.raises(StateError, match="is published"):
            generation.close()
        generation.close(force=True)
    assert service.generations == []


def test_another_version_s_state_is_refused(open_service: Open, bpffs_root: Path) -> None:
    """Its layout number is all that is read of it; nothing of it is changed."""
    service = open_service(TCP)
    with BpfObject.open(layout.object_bytes(), name="router") as spec:
        config = type(service.state.config).from_buffer_copy(service.state.config)
        config.abi = 9999
        spec.rodata["config"] = config
        spec.load()
        with spec.map(".rodata") as other:
            router_state._replace_pin(other, service.state.directory / "config")
    (service.state.directory / "flows").unlink()  # it may have other maps, too
    before = sorted(bpffs_root.rglob("*"))
    with pytest.raises(IncompatibleError, match="layout 9999"):
        Service.attach("web")
    with pytest.raises(IncompatibleError, match="layout 9999"):
        Service.open("web", [TCP])
    assert sorted(bpffs_root.rglob("*")) == before


def test_a_state_with_a_part_missing_is_named(open_service: Open) -> None:
    """What was removed by hand is told, and how to get rid of the rest."""
    service = open_service(TCP)
    (service.state.directory / "weights").unlink()
    with pytest.raises(StateError, match="weights is missing") as caught:
        Service.open("web", [TCP])
    assert f"rm -r {service.state.directory}" in str(caught.value)


@pytest.mark.parametrize("interrupted", [False, True])
def test_another_build_s_programs_are_replaced(
    open_service: Open, receivers: Receivers, monkeypatch: pytest.MonkeyPatch, *, interrupted: bool
) -> None:
    """The next release brings its own programs over the same maps; flows stay where they are."""
    service = open_service(TCP, UDP)
    publish(service, receivers, workers=4)
    program = service.state.program(UDP.flow)
    with client(UDP) as sock:
        sock.sendto(b"x", target(UDP))
        owner = receivers.expect().owner
        monkeypatch.setattr(layout, "build_digest", lambda: 42)
        upgraded = open_service(TCP, UDP)
        if interrupted:
            with monkeypatch.context() as patched:
                replace, calls = router_state._replace_pin, iter([1, 2])
                patched.setattr(router_state, "_replace_pin", lambda *a: (next(calls), replace(*a)))
                with pytest.raises(StopIteration):
                    upgraded.generation()
            sock.sendto(b"x", target(UDP))
            assert receivers.expect().owner == owner
            upgraded = open_service(TCP, UDP)
            assert upgraded.state.config.build != 42
        publish(upgraded, receivers, workers=4)
        new = upgraded.state.program(UDP.flow)
        assert new.id != program.id
        with enable_run_stats():
            sock.sendto(b"x", target(UDP))
            assert receivers.expect().owner == owner
        assert (program.run_stats().count, new.run_stats().count) == (0, 1)
        with client(UDP) as other:
            other.sendto(b"x", target(UDP))
            assert receivers.expect().generation == upgraded.generations[0].number
    with Service.attach("web") as seen:
        assert seen.state.config.build == 42
        assert seen.state.id_key == service.state.id_key
        assert seen.state.program(UDP.flow).id == new.id
    assert not list(service.state.directory.glob("@*"))


def test_a_taken_port_says_what_to_do(open_service: Open) -> None:
    """A socket without SO_REUSEPORT has it; nothing of the generation is left."""
    service = open_service(UDP, TCP)
    with socket.create_server(("127.0.0.1", 5000)):
        with pytest.raises(
            StateError, match=r"can't bind tcp://127.0.0.1:5000.*EADDRINUSE"
        ) as caught:
            service.generation(workers=2)
        assert "ss -lntup" in str(caught.value)
    assert service.generations == []
    with service.generation(workers=2):  # no socket and no lock was left
        assert len(service.generations) == 1
    assert service.bound_vips() == []


def as_nobody(code: str) -> list[str]:
    """The command for Python code that runs as another user.

    The interpreter starts as root, for not everyone may read where it is installed.
    """
    drop = f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
    return [sys.executable, "-c", code.replace("DROP", drop)]


def test_another_user_s_sockets_say_what_to_do(open_service: Open) -> None:
    """All sockets of a group belong to one user; the hint says so."""
    service = open_service(TCP)
    code = (
        "import socket, sys\nDROP\ns = socket.socket()\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "s.bind(('127.0.0.1', 5000)); s.listen(); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(as_nobody(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(StateError, match="belong to one user"):
            service.generation()
        other.communicate()


def test_an_ordinary_user_is_told_what_is_missing(open_service: Open) -> None:
    """No traceback of a PermissionError, whether the state is there or not."""
    open_service(TCP)
    code = """
from sockway import PermissionDenied, Service, Vip
from sockway.sockets import layout
layout.types()
DROP
vips = [Vip.parse("tcp://127.0.0.1:5000")]
for attempt in (
    lambda: Service.open("web", vips),
    lambda: Service.attach("web"),
    lambda: Service.names(),
    lambda: Service.open("web", vips, root="/sys/fs/bpf/sockway-tests"),
):
    try:
        attempt()
    except PermissionDenied as error:
        assert error.hint, error
        print("denied")
"""
    done = subprocess.run(as_nobody(code), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["denied"] * 4
