"""TCP on the kernel: what becomes of connections when listeners come and go, and odd states."""

from __future__ import annotations

import contextlib
import ctypes
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hatch_build import compile_object
from sockway import ConfigError, Service, StateError, Vip
from sockway.kernel import BpfObject, Netns, XdpMode
from tests.sockets.conftest import Open
from tests.sockets.harness import Receivers, publish, target

pytestmark = pytest.mark.root

HOSTS = ["127.0.0.1", "[::1]", "[::]"]
MANY = 20
LoseAcks = Callable[[], contextlib.AbstractContextManager[None]]


@pytest.fixture(scope="module")
def drop_ack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled XDP program that loses the last packet of each handshake."""
    target = tmp_path_factory.mktemp("objects") / "drop_ack.bpf.o"
    compile_object(Path(__file__).parent / "bpf" / "drop_ack.bpf.c", target)
    return target


@pytest.fixture
def lose_acks(inside: Netns, drop_ack: Path) -> LoseAcks:
    """A block in which handshakes with port 5000 do not come to their end at the server."""
    del inside

    @contextlib.contextmanager
    def losing() -> Iterator[None]:
        with BpfObject.open(drop_ack, name="drop_ack") as spec:
            spec.load()
            with spec.program("drop_ack") as program:
                lo = socket.if_nametoindex("lo")
                with program.attach_xdp(lo, XdpMode.GENERIC):
                    yield

    return losing


def sysctl(name: str) -> Path:
    """A setting of this thread's network namespace."""
    return Path("/proc/sys/net/ipv4", name)


def extended(name: str) -> int:
    """A TcpExt counter of this thread's network namespace."""
    names, values = (
        line.split()[1:]
        for line in Path("/proc/thread-self/net/netstat").read_text(encoding="ascii").splitlines()
        if line.startswith("TcpExt:")
    )
    return int(values[names.index(name)])


def connect_many(stack: contextlib.ExitStack, vip: Vip, count: int = MANY) -> list[socket.socket]:
    """Connections that nobody has accepted."""
    return [
        stack.enter_context(socket.create_connection(target(vip), timeout=10)) for _ in range(count)
    ]


def expect_all(receivers: Receivers, clients: list[socket.socket], generation: int) -> None:
    """All are accepted by this generation, and no client has heard of a reset."""
    for _ in clients:
        assert receivers.expect().generation == generation
    for client in clients:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


def test_the_tests_run_without_the_sysctl(inside: Netns) -> None:
    """Migration is the program's doing: net.ipv4.tcp_migrate_req is off in the namespace."""
    del inside
    assert sysctl("tcp_migrate_req").read_text(encoding="ascii").strip() == "0"


@pytest.mark.parametrize("host", HOSTS)
def test_an_accept_queue_moves_to_a_live_listener(
    open_service: Open, receivers: Receivers, host: str
) -> None:
    """Connections that nobody accepted survive the close of their listener, and can be used."""
    vip = Vip.parse(f"tcp://{host}:5000")
    service = open_service(vip)
    first = publish(service, receivers, workers=2)
    with contextlib.ExitStack() as stack:
        clients = connect_many(stack, vip)
        for client in clients:
            client.sendall(b"early")  # data that waits in the queue moves too
        publish(service, receivers, workers=2)
        receivers.forget(first)
        expect_all(receivers, clients, 2)
    assert service.counters().total("migrated") == MANY


def test_an_accept_queue_without_a_heir_is_reset(open_service: Open, receivers: Receivers) -> None:
    """The check above can fail: with no live listener left the kernel resets."""
    vip = Vip.parse("tcp://127.0.0.1:5000")
    service = open_service(vip)
    first = publish(service, receivers)
    with contextlib.ExitStack() as stack:
        (client,) = connect_many(stack, vip, 1)
        receivers.forget(first)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_queue_falls_back_to_the_older_generation(
    open_service: Open, receivers: Receivers
) -> None:
    """The published generation dies with connections in its queue: the older one has them."""
    vip = Vip.parse("tcp://127.0.0.1:5000")
    service = open_service(vip)
    publish(service, receivers)
    second = publish(service, receivers)
    with contextlib.ExitStack() as stack:
        clients = connect_many(stack, vip)
        receivers.forget(second)
        expect_all(receivers, clients, 1)
    assert service.counters().total("fallback_generation") == MANY


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("by", ["ack", "timer"])
def test_a_half_open_connection_moves(
    open_service: Open, receivers: Receivers, lose_acks: LoseAcks, host: str, by: str
) -> None:
    """In SYN_RECV when its listener closes: moved by the client's ACK, or by the server's timer."""
    vip = Vip.parse(f"tcp://{host}:5000")
    service = open_service(vip)
    first = publish(service, receivers)
    with contextlib.ExitStack() as stack:
        with lose_acks():
            clients = connect_many(stack, vip, 5)
            assert receivers.receive(0.1) is None
            publish(service, receivers)
            receivers.forget(first)
        if by == "ack":
            for client in clients:
                client.sendall(b"x")
        # Else the server sends its SYN-ACK again after a second, and the client answers it.
        expect_all(receivers, clients, 2)
    assert service.counters().total("migrated") == 5
    assert extended("TCPMigrateReqSuccess") == 5


@pytest.mark.parametrize("host", HOSTS)
def test_a_handshake_that_straddles_a_publish_ends_well(
    open_service: Open, receivers: Receivers, lose_acks: LoseAcks, host: str
) -> None:
    """It stays with the listener that has its SYN, as long as that lives."""
    vip = Vip.parse(f"tcp://{host}:5000")
    service = open_service(vip)
    publish(service, receivers, workers=2)
    with contextlib.ExitStack() as stack:
        with lose_acks():
            clients = connect_many(stack, vip)
            publish(service, receivers, workers=2)
        for client in clients:
            client.sendall(b"x")
        expect_all(receivers, clients, 1)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("closed", [False, True])
def test_a_syn_cookie_is_good_at_another_listener(
    open_service: Open, receivers: Receivers, lose_acks: LoseAcks, host: str, *, closed: bool
) -> None:
    """Its ACK lands after a publish, at a listener that has never seen the SYN."""
    sysctl("tcp_syncookies").write_text("2", encoding="ascii")
    vip = Vip.parse(f"tcp://{host}:5000")
    service = open_service(vip)
    first = publish(service, receivers, workers=2)
    with contextlib.ExitStack() as stack:
        with lose_acks():
            clients = connect_many(stack, vip)
            publish(service, receivers, workers=2)
            if closed:
                receivers.forget(first)
        for client in clients:
            client.sendall(b"x")
        expect_all(receivers, clients, 2)
    assert extended("SyncookiesRecv") == MANY
    counters = service.counters()
    assert counters.total("stray") == counters.total("new_flow") == MANY


def test_a_vip_without_an_array_meets_the_older_generation(
    open_service: Open, receivers: Receivers
) -> None:
    """A release that leaves out a VIP: it is served by who has it, until that is closed."""
    both = [Vip.parse("tcp://127.0.0.1:5000"), Vip.parse("tcp://127.0.0.1:5001")]
    first = publish(open_service(*both), receivers)
    service = open_service(both[0])
    publish(service, receivers)
    for vip, generation in zip(both, (2, 1), strict=True):
        with socket.create_connection(target(vip)):
            assert receivers.expect().generation == generation
    assert service.counters().total("fallback_generation") == 1
    receivers.forget(first)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(target(both[1]))


def test_without_any_array_the_choice_is_the_kernel_s(
    open_service: Open, receivers: Receivers
) -> None:
    """An array that is gone from the router loses no connection; the decision is counted."""
    vip = Vip.parse("tcp://127.0.0.1:5000")
    service = open_service(vip)
    generation = publish(service, receivers)
    service.state.clear_arrays([generation._array_key(p.group) for p in service.bound_vips()])
    with contextlib.ExitStack() as stack:
        expect_all(receivers, connect_many(stack, vip), 1)
    assert service.counters().total("kernel_hash") == MANY


def test_a_socket_of_no_vip_is_the_kernel_s(open_service: Open, receivers: Receivers) -> None:
    """A VIP that the table lost is counted apart, and its connections go to some listener."""
    vip = Vip.parse("tcp://127.0.0.1:5000")
    service = open_service(vip)
    publish(service, receivers)
    service.table.drop({p.group for p in service.bound_vips()})
    with contextlib.ExitStack() as stack:
        expect_all(receivers, connect_many(stack, vip), 1)
    assert service.counters().decisions["other"]["unknown_vip"] == MANY


def test_a_worker_that_no_array_has_is_not_picked(open_service: Open, receivers: Receivers) -> None:
    """The record says more workers than there are slots: another worker is found."""
    vip = Vip.parse("tcp://127.0.0.1:5000")
    service = open_service(vip)
    generation = publish(service, receivers)
    generation._slot.workers = 256
    with contextlib.ExitStack() as stack:
        expect_all(receivers, connect_many(stack, vip), 1)
    counters = service.counters()
    assert counters.total("fallback_worker") + counters.total("new_flow") == MANY
    assert counters.total("fallback_worker") > 0


def test_every_slot_of_an_array_can_be_picked(open_service: Open, receivers: Receivers) -> None:
    """Each of 64 workers gets its connection when all weight is its own."""
    vip = Vip.parse("tcp://127.0.0.1:5000?spread=weights")
    service = open_service(vip)
    generation = publish(service, receivers, workers=64)
    for worker in range(64):
        generation.set_weights([float(each == worker) for each in range(64)])
        with socket.create_connection(target(vip)):
            assert receivers.expect().worker == worker


def test_every_slot_of_the_service_can_be_published(
    open_service: Open, receivers: Receivers
) -> None:
    """Forty releases, the older one closed each time: every slot, and some of them again."""
    vip = Vip.parse("tcp://127.0.0.1:5000")
    service = open_service(vip)
    before = publish(service, receivers, workers=1)
    for number in range(2, 42):
        generation = publish(service, receivers, workers=1)
        receivers.forget(before)
        before.close()
        before = generation
        with socket.create_connection(target(vip)):
            assert receivers.expect().generation == number


def test_a_worker_listens_again_after_a_shutdown(open_service: Open, receivers: Receivers) -> None:
    """shutdown() takes a listener out of the router, listen() alone not back in; new sockets do."""
    vip = Vip.parse("tcp://127.0.0.1:5000?spread=weights")
    service = open_service(vip)
    generation = publish(service, receivers, workers=2)
    generation.set_weights([1.0, 0.0])

    def reached() -> int:
        with socket.create_connection(target(vip)):
            return receivers.expect().worker

    assert reached() == 0
    listener = generation.sockets(0)[vip]
    kept = listener.dup()
    listener.shutdown(socket.SHUT_RDWR)
    receivers.forget(generation, 0)
    assert set(generation.live_sockets()) == {(vip, 1)}
    assert reached() == 1
    kept.listen(16)
    assert reached() == 1
    receivers.add_worker(generation, 0, generation.replace_worker(0))
    assert reached() == 0
    kept.close()
    assert reached() == 0


@pytest.mark.parametrize("host", [*HOSTS, "0.0.0.0"])
def test_a_probe_reaches_the_worker_it_names_and_nobody_else_does(
    open_service: Open, receivers: Receivers, host: str
) -> None:
    """Each worker of a generation that is not published yet, while clients reach the old one."""
    vip = Vip.parse(f"tcp://{host}:5000")
    service = open_service(vip)
    publish(service, receivers, workers=1)
    coming = receivers.add(service.generation(workers=3))

    def reached(sock: socket.socket | None = None) -> tuple[int, int]:
        with sock or socket.create_connection(target(vip)) as connection:
            if connection is sock:
                connection.connect(target(vip))
            return receivers.expect().owner

    for worker in (2, 0, 1):
        with coming.probe_socket(vip, worker) as probe:
            place = probe.getsockname()[:2]
            assert reached() == (1, 0)
            assert reached(probe) == (2, worker)
            with pytest.raises(StateError, match="under way"), coming.probe_socket(vip, 0):
                pass
        after = socket.socket(probe.family, socket.SOCK_STREAM)
        after.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            after.bind(place)  # the probe's own port, where TIME_WAIT lets us have it
        assert reached(after) == (1, 0)
    coming.close()
    assert service.counters().total("probed") == 3


def test_a_probe_that_died_keeps_nobody_out(open_service: Open, receivers: Receivers) -> None:
    """The record of a probe whose process was killed is cleared by the next release."""
    vip = Vip.parse("tcp://127.0.0.1:5000")
    service = open_service(vip, "udp://127.0.0.1:5000")
    publish(service, receivers)
    service.record.probe.port = 1
    with service.generation() as generation:
        with generation.probe_socket(vip, 0):
            pass
        with pytest.raises(ConfigError, match="TCP"):
            generation.probe_socket(Vip.parse("udp://127.0.0.1:5000"), 0).__enter__()


def test_the_record_has_the_size_that_c_gave_it(open_service: Open) -> None:
    """What Python stores to publish is the word that the program reads."""
    service: Service = open_service("tcp://127.0.0.1:5000")
    assert type(service.record).published.offset == 0
    assert ctypes.sizeof(type(service.record)) == service.state.maps["service"].info.value_size
