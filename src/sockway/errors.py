"""Everything that Sockway raises.

    SockwayError
    ├── ConfigError              what was asked for can't be: a name, VIP, number or file
    ├── KernelError              the kernel refused
    │   ├── VerifierError        ... a program; `.log` has the verifier's words
    │   ├── FeatureError         ... because it lacks something, or a library does
    │   │   └── MissingExtra     an extra of the package was not installed
    │   └── PermissionDenied     ... because this process may not
    ├── StateError               it can't be done as things stand
    │   ├── BusyError            another process is doing it
    │   ├── NotFoundError        there is no such thing
    │   └── IncompatibleError    it was made by another version
    └── ReleaseError             a release did not come about; the old generation serves on

A message names the thing; `.hint` says the way out.
"""

from __future__ import annotations


class SockwayError(Exception):
    """The root of all errors that Sockway raises on purpose."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Say what is wrong, and what to do about it.

        Args:
            message: names the thing that is wrong.
            hint: the way out, where there is one.

        """
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message, with the hint behind it."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(SockwayError):
    """What was asked for can't be: a name, a VIP, a number, a file."""


class KernelError(SockwayError):
    """The kernel refused; the message has its reason."""


class VerifierError(KernelError):
    """The kernel's verifier refused a program."""

    def __init__(self, message: str, *, log: str = "", hint: str | None = None) -> None:
        """Keep the whole log beside the one line of it that the message has.

        Args:
            message: names the program and the telling line.
            log: all that the verifier wrote.
            hint: the way out, where there is one.

        """
        super().__init__(message, hint=hint)
        self.log = log


class FeatureError(KernelError):
    """The kernel, or a library that Sockway needs, lacks a feature."""


class PermissionDenied(KernelError):  # noqa: N818 - names what happened, as PermissionError does
    """This process lacks a capability."""


class StateError(SockwayError):
    """It can't be done as things stand."""


class BusyError(StateError):
    """Another process is changing the same thing."""


class NotFoundError(StateError):
    """There is no such service, generation or pin."""


class IncompatibleError(StateError):
    """It was made by a version whose layouts this one does not know."""


class MissingExtra(FeatureError, ModuleNotFoundError):  # noqa: N818 - names what is missing
    """A module is missing that comes with an extra of the package; the hint installs it."""


class ReleaseError(SockwayError):
    """A release did not come about; what was published before goes on serving."""
