"""Makes aioquic's servers mint connection IDs that lead to this worker.

aioquic has no hook for connection IDs, so two methods of its QuicConnection are wrapped: the one
that makes the first ID and the one that adds more. Both go on doing their work; then the new
IDs, which nobody has seen yet, are replaced by ours. Clients in the same process are left alone.

The names are private to aioquic. `install` tries them on a connection of its own before it
changes anything, and says so if they have moved.

A server has to know how long its IDs are when it reads a short header: aioquic takes that from
its configuration, which is set for each server connection here. hypercorn 0.18 does not look
there, but reads IDs of 8 octets whatever the configuration says: its reader is wrapped, too.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any, Final

from sockway.errors import ConfigError, FeatureError, MissingExtra
from sockway.extras import clear_imports
from sockway.quic.ids import ConnectionIds, is_worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.connection import QuicConnection

_HYPERCORN: Final = "hypercorn.protocol.quic"
_READER: Final = "pull_quic_header"
_REPLENISH: Final = "_replenish_connection_ids"
_ORIGINAL: Final = "sockway_original"
_LENGTH: Final = "sockway_id_length"
_USED: Final = "sockway_has_served"
_HINT: Final = "install a version that is known to work: pip install 'sockway[quic]'"


def install(ids: ConnectionIds | None = None) -> ConnectionIds:
    """Make all server connections of aioquic in this process use our IDs from now on.

    Call it before the first connection; IDs then have the length of `ids`, whatever
    `QuicConfiguration.connection_id_length` said. Another call replaces the first, for the further
    IDs of connections that there are already, too.

    Args:
        ids: where the IDs come from; from the environment of a worker if not given.

    Raises:
        ConfigError: this process is not a worker; it names the variable that is missing. Or there
            were connections already, with IDs of another length.
        FeatureError: aioquic is not there, or is of a version that keeps IDs elsewhere.

    """
    ids = ids or ConnectionIds.from_environment()
    connection = _connection_class()
    used = getattr(connection.__init__, _USED, None)
    if used not in {None, ids.length}:
        raise ConfigError(
            f"connections here have IDs of {used} octets, and are to get IDs of {ids.length}",
            hint="a server reads one length only: keep it, or release the server",
        )
    _wrap_first_id(connection, ids)
    _wrap_further_ids(connection, ids)
    _adapt_hypercorn(ids.length)
    return ids


def install_from_environment_if_present() -> ConnectionIds | None:
    """Do as `install` where this process is a worker; else nothing, and return None.

    For applications that also run without Sockway.

    Raises:
        ConfigError: a worker's environment is not complete.
        FeatureError: aioquic is not there, or is of a version that keeps IDs elsewhere.

    """
    return install() if is_worker() else None


def _connection_class() -> type[QuicConnection]:
    """The class of aioquic's connections, after a look at all that is needed of it."""
    try:
        with clear_imports():
            configuration = importlib.import_module("aioquic.quic.configuration")
            connection = importlib.import_module("aioquic.quic.connection")
    except MissingExtra:
        raise
    except ImportError as error:
        raise FeatureError(f"aioquic can't be imported: {error}", hint=_HINT) from error
    try:
        sample = connection.QuicConnection(
            configuration=configuration.QuicConfiguration(is_client=True, connection_id_length=9)
        )
        first = sample._host_cids[0].cid  # noqa: SLF001
        known = (
            callable(getattr(sample, _REPLENISH))
            and first == sample.host_cid == sample._local_initial_source_connection_id  # noqa: SLF001
            and len(first) == 9  # noqa: PLR2004 - as the configuration above has it
        )
    except (AttributeError, IndexError, TypeError):
        known = False
    if not known:
        version = importlib.metadata.version("aioquic")
        raise FeatureError(f"aioquic {version} keeps its connection IDs elsewhere", hint=_HINT)
    found: type[QuicConnection] = connection.QuicConnection
    return found


def _wrap_first_id(connection: type[QuicConnection], ids: ConnectionIds) -> None:
    """Replace the ID that a server's first packet carries."""
    original = _unwrapped(connection.__init__)
    used = getattr(connection.__init__, _USED, None)

    def initialise(
        self: QuicConnection, *, configuration: QuicConfiguration, **options: object
    ) -> None:
        if configuration.is_client:
            original(self, configuration=configuration, **options)
            return
        # hypercorn imports its QUIC side when its server starts, so not before now for sure.
        _adapt_hypercorn(ids.length)
        configuration.connection_id_length = ids.length
        original(self, configuration=configuration, **options)
        setattr(wrapper, _USED, ids.length)
        first = ids.mint()
        self._host_cids[0].cid = first
        self.host_cid = first
        self._local_initial_source_connection_id = first

    wrapper = _wrapped(initialise, original)
    setattr(wrapper, _USED, used)
    connection.__init__ = wrapper  # type: ignore[method-assign]


def _wrap_further_ids(connection: type[QuicConnection], ids: ConnectionIds) -> None:
    """Replace the IDs that a server offers once the handshake is done."""
    original = _unwrapped(getattr(connection, _REPLENISH))

    def replenish(self: QuicConnection) -> None:
        known = len(self._host_cids)
        original(self)
        if not self._is_client:
            for added in self._host_cids[known:]:
                added.cid = ids.mint()

    setattr(connection, _REPLENISH, _wrapped(replenish, original))


def _adapt_hypercorn(length: int) -> None:
    """Have hypercorn, where it is in use, read IDs of our length."""
    module: ModuleType | None = sys.modules.get(_HYPERCORN)
    if module is None:
        return
    reader: Callable[..., Any] | None = getattr(module, _READER, None)
    if reader is None:
        version = importlib.metadata.version("hypercorn")
        raise FeatureError(f"hypercorn {version} reads QUIC headers elsewhere", hint=_HINT)
    if getattr(reader, _LENGTH, None) == length:
        return
    original = _unwrapped(reader)

    def read(buffer: object, host_cid_length: int | None = None) -> object:  # noqa: ARG001
        return original(buffer, host_cid_length=length)

    wrapper = _wrapped(read, original)
    setattr(wrapper, _LENGTH, length)
    setattr(module, _READER, wrapper)


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """What was there before `install`."""
    original: Callable[..., Any] = getattr(function, _ORIGINAL, function)
    return original


def _wrapped(wrapper: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper that looks like what it wraps, and remembers it."""
    functools.update_wrapper(wrapper, original)
    setattr(wrapper, _ORIGINAL, original)
    return wrapper
