"""Network namespaces: one's own, a new one, and work done inside one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from sockway.errors import FeatureError
from sockway.kernel.ffi import error_of

if TYPE_CHECKING:
    from types import TracebackType

_CLONE_NEWNET: Final = 0x40000000
_SO_NETNS_COOKIE: Final = 71
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_OWN: Final = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def current_netns_cookie() -> int:
    """Return the number of this thread's network namespace, never reused while the host runs.

    Raises:
        FeatureError: the kernel, or the sandbox around this process, has no such number.

    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError as error:
            raise _no_cookie(error) from error
    return int.from_bytes(raw, "little")


def _no_cookie(error: OSError) -> FeatureError:
    """Say which of the two it is: a kernel before 5.14, or a filter of system calls."""
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    return FeatureError(
        f"network namespaces have no cookie here: getsockopt(SO_NETNS_COOKIE) fails with {name}",
        hint="use Linux 5.14 or later, and no sandbox that hides it; `sockway doctor` shows more",
    )


class Netns:
    """A network namespace held open by a descriptor; it goes when nothing holds it."""

    def __init__(self, fd: int) -> None:
        """Take over the descriptor `fd`."""
        self.fd = fd

    @classmethod
    def current(cls) -> Self:
        """The namespace of this thread."""
        return cls(os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC))

    @classmethod
    def from_path(cls, path: Path | str) -> Self:
        """The namespace that a path names, such as /run/netns/NAME or /proc/PID/ns/net."""
        return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    @classmethod
    def create(cls) -> Self:
        """A new namespace with its loopback interface up; it has no name.

        Raises:
            PermissionDenied: it takes CAP_SYS_ADMIN.

        """

        def make() -> int:
            if _libc.unshare(_CLONE_NEWNET):
                raise error_of(ctypes.get_errno(), "create a network namespace")
            _loopback_up()
            return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)

        # In a thread of its own, so that the caller's namespace stays what it is.
        return cls(_in_thread(make))

    @property
    def cookie(self) -> int:
        """Its number; see `current_netns_cookie`."""
        return self.run(current_netns_cookie)

    def run(self, work: Callable[[], T]) -> T:
        """Do something inside it, in a thread of its own, and return what it returned."""

        def inside() -> T:
            self.enter()
            return work()

        return _in_thread(inside)

    def enter(self) -> None:
        """Move this thread into it.

        Raises:
            PermissionDenied: it takes CAP_SYS_ADMIN.

        """
        if _libc.setns(self.fd, _CLONE_NEWNET):
            raise error_of(ctypes.get_errno(), "enter a network namespace")

    @contextlib.contextmanager
    def entered(self) -> Iterator[Self]:
        """Have this thread inside it while the block lasts; children started there stay."""
        with Netns.current() as before:
            self.enter()
            try:
                yield self
            finally:
                before.enter()

    def close(self) -> None:
        """Let go of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        """Return itself; it is let go of when the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of it."""
        self.close()


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        name, flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", name, flags | _IFF_UP))


def _in_thread(work: Callable[[], T]) -> T:
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
