"""The version of this package, where reading it costs nothing; the build takes it from here."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
