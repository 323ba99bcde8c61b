"""A process without SO_NETNS_COOKIE, as on kernels before 5.14 and in some sandboxes.

`python -m tests.kernel.seccomp COMMAND ...` installs a filter of system calls and becomes the
command. The filter is the kernel's own (seccomp(2), classic BPF): getsockopt(SOL_SOCKET,
SO_NETNS_COOKIE) fails with ENOPROTOOPT in this process and its children, and nothing else changes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_MODE_FILTER = 2
_AUDIT_ARCH_X86_64 = 0xC000003E
_GETSOCKOPT = 55
_SOL_SOCKET, _SO_NETNS_COOKIE = 1, 71
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCH, _LEVEL, _OPTION = 0, 4, 24, 32  # offsets in struct seccomp_data


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def hide_netns_cookie() -> None:
    """Have this process and its children do without SO_NETNS_COOKIE, for good."""
    wanted = (
        (_ARCH, _AUDIT_ARCH_X86_64),
        (_NUMBER, _GETSOCKOPT),
        (_LEVEL, _SOL_SOCKET),
        (_OPTION, _SO_NETNS_COOKIE),
    )
    code = b""
    for position, (offset, value) in enumerate(wanted):
        to_allow = 2 * (len(wanted) - position - 1) + 1  # instructions after this pair to jump over
        code += struct.pack("HBBI", _LOAD, 0, 0, offset)
        code += struct.pack("HBBI", _EQUAL, 0, to_allow, value)
    code += struct.pack("HBBI", _RETURN, 0, 0, _ERRNO | errno.ENOPROTOOPT)
    code += struct.pack("HBBI", _RETURN, 0, 0, _ALLOW)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code) // 8, code)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    hide_netns_cookie()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - becomes the command, as env(1) does
