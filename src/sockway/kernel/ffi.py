"""The door to libbpf: the loaded library, its messages, and its errors as Sockway's.

libbpf returns negative errno values (1.0 and later), and says more through a print callback. That
is kept in a thread's own list, so that an error can quote it, and nothing reaches stderr.
"""

from __future__ import annotations

import errno
import os
import threading
from functools import cache
from typing import Any, Final

from sockway.errors import FeatureError, KernelError, PermissionDenied

try:
    from sockway.kernel._libbpf import ffi as _ffi
except ImportError as error:  # a source tree that was not built
    message = "the libbpf binding is not built"
    raise FeatureError(message, hint="run `make bpf`, or pip install the package") from error

ffi: Any = _ffi

# The name that every distribution gives to libbpf 1.x, found by the dynamic loader: ld.so.cache,
# LD_LIBRARY_PATH and the processor's own folders are its business.
_LIBRARY: Final = "libbpf.so.1"
INSTALL: Final = (
    "install libbpf 1.1 or later:"
    " apt-get install libbpf1 (Debian), dnf install libbpf (Fedora), apk add libbpf (Alpine)"
)
"""What to do where there is no libbpf, or one that is too old."""
_INFO: Final = 1  # LIBBPF_INFO; warnings are below it, debugging words above
_words = threading.local()


class _Library:
    """libbpf, loaded when first asked for a function: what needs none works without it."""

    def __getattr__(self, name: str) -> Any:
        """The C function `name`; kept, so that it is looked for once.

        Raises:
            FeatureError: there is no libbpf, or it is too old for this function.

        """
        if name.startswith("_"):
            raise AttributeError(name)  # Python's own questions, not a function of libbpf
        try:
            function = getattr(_load(), name)
        except AttributeError as error:
            raise FeatureError(f"{_LIBRARY} has no {name}", hint=INSTALL) from error
        setattr(self, name, function)
        return function


@cache
def _load() -> Any:
    try:
        loaded = ffi.dlopen(_LIBRARY)
    except OSError as error:
        # Not there, or there and not loadable: of another processor, without its own libelf.
        words = str(error).partition(": ")[2].removeprefix(f"{_LIBRARY}: ")
        raise FeatureError(f"{_LIBRARY} can't be loaded: {words}", hint=INSTALL) from error
    loaded.libbpf_set_print(_on_print)
    return loaded


def _hear(level: int, text: Any, arguments: Any) -> int:
    if level > _INFO:
        return 0  # what went well, step by step: it would bury the reason of a failure
    # One pass: a va_list is used up by reading it, and what it is differs between processors (an
    # array of one structure on x86-64, a structure on arm64, a pointer on most). In all of them
    # it arrives here as one address, and can be handed on as such.
    told = ffi.new("char **")
    size = int(lib.vasprintf(told, text, arguments))
    if size < 0:
        return 0
    try:
        _heard().append(ffi.string(told[0], size).decode(errors="replace"))
    finally:
        lib.free(told[0])
    return size


def _heard() -> list[str]:
    if not hasattr(_words, "heard"):
        _words.heard = []
    heard: list[str] = _words.heard
    return heard


# Held here for good: libbpf knows only its address.
_on_print = ffi.callback("int(int, const char *, void *)", _hear)
lib: Any = _Library()


def take_words() -> str:
    """What libbpf has said in this thread since this was last called."""
    heard = _heard()
    words = "".join(heard)
    heard.clear()
    return words


def version() -> str:
    """Version of the loaded libbpf, as `1.1.2`."""
    return str(ffi.string(lib.libbpf_version_string()).decode()).removeprefix("v")


def check(result: int, what: str, hint: str | None = None) -> int:
    """The result of a libbpf call, if it is one.

    Args:
        result: what the call returned; negative is an errno.
        what: what was tried, as in "can't <what>".
        hint: the way out, where the errno alone does not tell it.

    Raises:
        PermissionDenied: EPERM or EACCES.
        KernelError: any other errno.

    """
    if result >= 0:
        take_words()
        return result
    raise error_of(-result, what, hint)


def check_errno(result: int, what: str, hint: str | None = None) -> int:
    """`check` for calls that return -1 and set errno, as the plain libc does."""
    return check(result if result >= 0 else -(ffi.errno or errno.EIO), what, hint)


def error_of(number: int, what: str, hint: str | None = None) -> KernelError:
    """The error for an errno."""
    name = errno.errorcode.get(number, str(number))
    message = f"can't {what}: {os.strerror(number)} ({name})"
    take_words()
    if number in {errno.EPERM, errno.EACCES}:
        return PermissionDenied(
            message, hint=hint or "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN"
        )
    return KernelError(message, hint=hint)
