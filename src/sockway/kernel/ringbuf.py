"""Ring buffers: records that programs send, read as they come."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from sockway.errors import KernelError
from sockway.kernel.ffi import check, ffi, lib, take_words

if TYPE_CHECKING:
    import asyncio  # costly, and only its names are needed here
    from types import TracebackType

    from sockway.kernel.map import Map


class RingBuffer:
    """A consumer of a BPF_MAP_TYPE_RINGBUF map."""

    def __init__(self, source: Map, callback: Callable[[bytes], None]) -> None:
        """Call `callback` with each record.

        An exception of the callback ends the reading and is raised by `poll` or `consume`; the
        record that caused it counts as read.

        Raises:
            KernelError: the map is no ring buffer.

        """
        self._callback = callback
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Held here: libbpf knows only its address.
        self._on_sample = ffi.callback("int(void *, void *, size_t)", self._take)
        self._pointer: Any = lib.ring_buffer__new(source.fd, self._on_sample, ffi.NULL, ffi.NULL)
        if self._pointer == ffi.NULL:
            self._pointer = None
            raise KernelError(f"can't read map as a ring buffer: {take_words().strip()}")

    @property
    def fd(self) -> int:
        """A descriptor that is readable while there are records (`loop.add_reader`)."""
        return int(lib.ring_buffer__epoll_fd(self._pointer))

    def consume(self) -> int:
        """Read what is there, without waiting; returns how many records."""
        return self._checked(lib.ring_buffer__consume(self._pointer))

    def poll(self, timeout: float) -> int:
        """Wait for records for at most `timeout` seconds; returns how many were read.

        A signal ends the wait early: it is a wait without records, and no error.
        """
        result = lib.ring_buffer__poll(self._pointer, round(timeout * 1000))
        return self._checked(0 if result == -errno.EINTR else result)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read whenever there are records, from this event loop, until it is closed.

        An exception of the callback goes to the loop's exception handler.
        """
        loop.add_reader(self.fd, self.consume)
        self._loop = loop

    def close(self) -> None:
        """Stop reading."""
        if self._pointer is not None:
            if self._loop is not None and not self._loop.is_closed():
                # Before its descriptor goes: the number may be another's the next moment.
                self._loop.remove_reader(self.fd)
            self._loop = None
            lib.ring_buffer__free(self._pointer)
            self._pointer = None

    def __enter__(self) -> Self:
        """Return itself; reading stops when the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop reading."""
        self.close()

    def _take(self, _context: Any, data: Any, size: int) -> int:
        try:
            self._callback(bytes(ffi.buffer(data, size)))
        except BaseException as error:  # noqa: BLE001 - it can't cross the C frames
            self._failure = error
            return -1
        return 0

    def _checked(self, result: int) -> int:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return check(result, "read a ring buffer")
