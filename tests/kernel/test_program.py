from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from sockway.errors import KernelError, NotFoundError
from sockway.kernel import BpfObject, Program, RingBuffer, enable_run_stats
from tests.kernel.child import as_nobody

pytestmark = pytest.mark.root

XDP_DROP, XDP_TX = 1, 3


def test_a_test_run_gives_verdict_packet_and_time(loaded: BpfObject) -> None:
    """The packet is as the program left it; what was given is untouched."""
    frame = bytes(range(64))
    with loaded.program("tell") as program:
        run = program.test_run(frame)
    assert run.retval == XDP_TX
    assert run.data == b"\xff" + frame[1:]
    assert run.duration > 0
    assert frame[0] == 0


def test_a_packet_that_can_not_be_is_refused(loaded: BpfObject) -> None:
    """A frame shorter than an Ethernet header is the kernel's error."""
    with loaded.program("drop") as program, pytest.raises(KernelError, match="EINVAL"):
        program.test_run(b"short")


def test_live_frames_run_as_often_as_asked(shapes: BpfObject) -> None:
    """In batches, with the verdict carried out: what is dropped is gone, nothing comes back."""
    shapes.rodata["settings"] = shapes.types.struct("settings")(verdict=XDP_DROP)
    shapes.load()
    with shapes.program("count") as program, shapes.map("cells") as cells:
        cells[1] = shapes.types.struct("cell")(add=1)
        run = program.test_run(bytes(64), repeat=100, live_frames=True, batch_size=8)
        assert cells[0].packets == 100
        assert run.data == b""


def test_the_kernel_tells_of_a_program(loaded: BpfObject, bpffs_root: Path) -> None:
    """Name, number, digest and sizes; the same through a pin."""
    with loaded.program("count") as program, loaded.program("drop") as other:
        assert program.name == "count"
        assert len(program.tag) == 16
        assert program.tag != other.tag
        jited, translated, verified = program.sizes
        assert jited > 0
        assert 0 < translated < 100
        assert 0 < verified < 100
        program.pin(bpffs_root / "count")
        with Program.from_pin(bpffs_root / "count") as again:
            assert (again.id, again.tag) == (program.id, program.tag)
            assert again.id != other.id
    with pytest.raises(NotFoundError, match="nonesuch"):
        Program.from_pin(bpffs_root / "nonesuch")


def test_runs_are_counted_while_statistics_are_on(loaded: BpfObject) -> None:
    """Every repetition counts, with its time; of another program none."""
    with loaded.program("count") as program, loaded.program("drop") as idle:
        with enable_run_stats():
            program.test_run(bytes(64), repeat=100)
        stats = program.run_stats()
        assert stats.count == 100
        assert 0 < stats.mean < 1e6
        assert idle.run_stats().count == 0
        assert idle.run_stats().mean == 0


def test_statistics_need_rights() -> None:
    """A user without capabilities can't switch them on."""

    def switch_on() -> None:
        with enable_run_stats():
            pass

    assert as_nobody(switch_on).startswith("PermissionDenied: can't switch on")


def test_a_reuseport_program_decides(loaded: BpfObject) -> None:
    """Once attached, a group takes nothing: the program drops. Without, it takes the packet."""
    with (
        loaded.program("refuse") as program,
        _udp() as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.connect(server.getsockname())
        client.send(b"before")
        assert server.recv(64) == b"before"
        program.attach_reuseport(server)
        try:
            client.send(b"after")
            client.send(b"after")  # the first one's refusal is told here
        except ConnectionRefusedError:
            pass
        with pytest.raises(TimeoutError):
            server.recv(64)


def test_only_sockets_of_a_group_take_a_program(loaded: BpfObject) -> None:
    """No SO_REUSEPORT, and a program of another type, are errors that say what was tried."""
    with loaded.program("refuse") as program, loaded.program("drop") as xdp:
        with _udp(shared=False) as alone, pytest.raises(KernelError, match="reuseport group"):
            program.attach_reuseport(alone)
        with _udp() as server, pytest.raises(KernelError, match="reuseport group"):
            xdp.attach_reuseport(server)


@pytest.fixture
def tell(loaded: BpfObject) -> Iterator[Program]:
    """The program that writes octet 13 of its packet into the ring buffer."""
    with loaded.program("tell") as program:
        yield program


def _frame(number: int) -> bytes:
    return bytes(13) + bytes([number]) + bytes(50)


def test_records_are_read_in_order(loaded: BpfObject, tell: Program) -> None:
    """What was written before and after the reader came; with nothing there, it reads nothing."""
    seen: list[int] = []
    tell.test_run(_frame(1))
    with (
        loaded.map("events") as events,
        RingBuffer(events, lambda raw: seen.append(*struct.unpack("<Q", raw))) as ring,
    ):
        tell.test_run(_frame(2))
        assert ring.poll(1.0) == 2
        assert ring.consume() == 0
        assert ring.poll(0.01) == 0
        tell.test_run(_frame(3), repeat=2)
        assert ring.consume() == 2
    assert seen == [1, 2, 3, 3]


def test_an_error_of_the_callback_is_raised_once(loaded: BpfObject, tell: Program) -> None:
    """It comes out of the call that read the record; the next record is read as usual."""
    seen: list[int] = []

    def take(raw: bytes) -> None:
        seen.append(raw[0])
        if raw[0] == 1:
            raise LookupError("one")

    with loaded.map("events") as events, RingBuffer(events, take) as ring:
        tell.test_run(_frame(1))
        tell.test_run(_frame(2))
        with pytest.raises(LookupError, match="one"):
            ring.consume()
        assert ring.consume() == 1
    assert seen == [1, 2]


async def test_an_event_loop_reads_records(loaded: BpfObject, tell: Program) -> None:
    """Records wake the loop; after closing, their descriptor is the loop's business no more."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    with loaded.map("events") as events:
        ring = RingBuffer(events, lambda raw: queue.put_nowait(raw[0]))
        ring.attach(loop)
        for number in (5, 6):
            tell.test_run(_frame(number))
            assert await asyncio.wait_for(queue.get(), 5) == number
        fd = ring.fd
        ring.close()
        ring.close()
        assert not loop.remove_reader(fd)


def test_only_ring_buffers_are_read(loaded: BpfObject) -> None:
    """Another map is refused in libbpf's words."""
    with loaded.map("cells") as cells, pytest.raises(KernelError, match="ring buffer"):
        RingBuffer(cells, lambda _raw: None)


def _udp(*, shared: bool = True) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(0.3)
    return sock
