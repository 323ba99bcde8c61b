"""Packets of a VIP as they come in, each with the decision that was taken: live, or as pcapng."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from sockway.balancer import layout
from sockway.balancer.explain import VERDICTS
from sockway.balancer.ledger import Ledger
from sockway.balancer.state import CURRENT, BalancerState
from sockway.errors import BusyError, ConfigError, NotFoundError
from sockway.kernel import RingBuffer, bpffs

ALL: Final = (1 << 32) - 1
_PAUSE: Final = 0.1
_ETHERNET: Final = 1  # LINKTYPE_ETHERNET
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True)
class Captured:
    """One packet."""

    time: float
    """Unix time, in seconds."""
    interface: int
    """Index of the interface that it came in by."""
    vip: str
    outcome: str
    verdict: str
    backend: str | None
    length: int
    """Octets of the frame; `frame` may have fewer."""
    frame: bytes
    """As it came in, from the Ethernet header on."""

    @property
    def comment(self) -> str:
        """The decision, in words."""
        target = f" -> {self.backend}" if self.backend else ""
        return f"{self.vip} {self.outcome}{target} ({self.verdict})"

    def as_json(self) -> dict[str, Any]:
        """For `--json`; the frame as hexadecimal digits."""
        return {**asdict(self), "frame": self.frame.hex()}


class Capture:
    """A capture that is on while its `with` block lasts. Only one at a time.

    The cost is that of the packets captured: they are copied, up to 2,048 octets of each. What the
    reader does not fetch in time is not captured; nothing that is forwarded waits for it.
    """

    def __init__(self, state: BalancerState, book: Ledger, vip: str | None, every: int) -> None:
        """Take what `Balancer.capture` has found."""
        if every < 1:
            raise ConfigError(f"one packet of {every} can't be", hint="use 1 or more")
        if vip is not None and vip not in book.indices:
            raise NotFoundError(
                f"there is no VIP {vip!r}", hint=f"there are: {', '.join(book.indices) or 'none'}"
            )
        self._state = state
        self._index = ALL if vip is None else book.indices[vip]
        self._every = every
        self._vips = {index: key for key, index in book.indices.items()}
        self._book = book
        self._found: list[Captured] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Begin."""
        with contextlib.ExitStack() as opened:
            try:
                opened.enter_context(bpffs.lock(self._state.directory / CURRENT))
            except BusyError:
                raise BusyError(
                    "another process captures", hint="one at a time: end that one"
                ) from None
            self._ring = opened.enter_context(RingBuffer(self._state.maps["captured"], self._take))
            self._ring.consume()  # what a capture before left
            self._found.clear()
            settings = self._state.settings
            settings.capture_every = self._every
            settings.capture = self._index
            opened.callback(self._off)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        self._open.close()

    def packets(
        self, count: int | None = None, until: Callable[[], bool] | None = None
    ) -> Iterator[Captured]:
        """Packets as they come.

        Args:
            count: the most of them; no end if not given.
            until: asked ten times a second whether to end.

        """
        given = 0
        while until is None or not until():
            self._ring.poll(_PAUSE)
            found, self._found = self._found, []
            for packet in found:
                yield packet
                given += 1
                if given == count:
                    return

    def _off(self) -> None:
        self._state.settings.capture = 0

    def _take(self, raw: bytes) -> None:
        record = layout.record("capture").from_buffer_copy(raw)
        shift = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
        self._found.append(
            Captured(
                time=record.time / 1e9 + shift,
                interface=int(record.ifindex),
                vip=self._vips.get(record.vip, f"number {record.vip}"),
                outcome=layout.outcomes()[record.outcome],
                verdict=VERDICTS[record.verdict],
                backend=self._book.name_of(record.backend) if record.backend else None,
                length=int(record.length),
                frame=bytes(record.frame[: record.kept]),
            )
        )


class PcapngFile:
    """Captured packets in a file that Wireshark opens; the decision is each packet's comment."""

    def __init__(self, file: IO[bytes]) -> None:
        """Write the header to `file`."""
        # Here, for other commands have no use for it.
        from pcapng import FileWriter, blocks  # noqa: PLC0415

        self._packet: Any = blocks.EnhancedPacket
        self._interfaces: dict[int, int] = {}
        self._section = blocks.SectionHeader(options={"shb_userappl": "sockway"})
        self._description: Any = blocks.InterfaceDescription
        self._writer = FileWriter(file, self._section)
        self._file = file

    @classmethod
    @contextlib.contextmanager
    def create(cls, path: Path) -> Iterator[Self]:
        """A new file.

        Raises:
            ConfigError: the file can't be made.

        """
        try:
            file = path.open("wb")
        except OSError as error:
            raise ConfigError(f"can't write {path}: {error.strerror}") from None
        with file:
            yield cls(file)

    def write(self, packet: Captured) -> None:
        """Append a packet."""
        if packet.interface not in self._interfaces:
            self._interfaces[packet.interface] = len(self._interfaces)
            self._writer.write_block(
                self._section.new_member(
                    self._description,
                    link_type=_ETHERNET,
                    options={"if_name": f"interface {packet.interface}"},
                )
            )
        stamp = int(packet.time * _MICROSECONDS)
        self._writer.write_block(
            self._section.new_member(
                self._packet,
                interface_id=self._interfaces[packet.interface],
                timestamp_high=stamp >> 32,
                timestamp_low=stamp & 0xFFFFFFFF,
                packet_len=packet.length,
                packet_data=packet.frame,
                options={"opt_comment": packet.comment},
            )
        )
        self._file.flush()


__all__ = ["Capture", "Captured", "PcapngFile"]
