"""One answer of `sockway doctor`, and the question that leads to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sockway.errors import FeatureError, PermissionDenied, SockwayError

ASK_AGAIN = "run `sockway doctor` as root, who has the right to try it"
REPORT = "report it: this probe ended in a way that nobody foresaw"


@dataclass(frozen=True)
class Feature:
    """Something that this machine has or has not."""

    name: str
    ok: bool
    detail: str
    """What was found, or why not."""
    need: str
    """What Sockway uses it for."""
    remedy: str
    """What to do where it is missing; empty where it is there."""
    required: bool
    """Without it no service can be opened; else only what `need` says is missing."""
    instead: str = ""
    """The older way that is used because this is not there; nothing is missing then."""


@dataclass(frozen=True)
class Probe:
    """A question to this machine, asked by trying."""

    name: str
    need: str
    remedy: str
    run: Callable[[], str]
    """Try it and return what was found; raise SockwayError or OSError for a no."""
    required: bool = False
    instead: str = ""
    """The older way that Sockway takes where this is not there."""

    def ask(self) -> Feature:
        """Try it and return the row. Whatever is raised is an answer too.

        A machine that breaks one probe is the one whose other rows are needed most.
        """
        try:
            detail = self.run()
        except (PermissionDenied, PermissionError) as error:
            return self._no(f"not known: {_words(error)}", ASK_AGAIN)
        except (SockwayError, OSError) as error:
            if self.instead:
                detail = f"{_words(error)}; used instead: {self.instead}"
                return Feature(self.name, True, detail, self.need, "", self.required, self.instead)
            return self._no(_words(error), self.remedy)
        except Exception as error:  # noqa: BLE001 - no probe may keep the others from telling
            return self._no(unforeseen(error), REPORT)
        return Feature(self.name, True, detail, self.need, "", self.required)

    def _no(self, detail: str, remedy: str) -> Feature:
        return Feature(self.name, False, detail, self.need, remedy, self.required)


def unforeseen(error: Exception) -> str:
    """Return the words for an error that no probe raises on purpose."""
    return f"not known: unexpected {type(error).__name__}: {error}"


def missing(detail: str) -> FeatureError:
    """The error of a probe that found that it is not there."""
    return FeatureError(detail)


def _words(error: Exception) -> str:
    return error.message if isinstance(error, SockwayError) else str(error)
