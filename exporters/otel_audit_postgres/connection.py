"""The one place where asyncpg is imported and connections are opened, limited and given up.

Every connection has limits in the server, too: what this process gives up, or leaves behind when
it is killed, ends there by itself. Behind a pooler that hands each transaction to another backend
nothing may be left in a session: settings go into each transaction, and no statement is prepared.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit._util.postgres_dsn import PostgresDsn, read_dsn
from otel_audit.config import AuditConfig
from otel_audit.errors import MissingExtraError, OtelAuditError, StoreError, StoreUnavailableError
from otel_audit_postgres.errors import as_connect_error, as_store_error

try:
    import asyncpg
    from asyncpg.exceptions import (
        InsufficientPrivilegeError,
        InterfaceError,
        InternalClientError,
        LockNotAvailableError,
        PostgresError,
        PostgresLogMessage,
        QueryCanceledError,
        UndefinedFunctionError,
    )
except ImportError as missing:
    raise MissingExtraError("the PostgreSQL audit store", "postgres") from missing

_COPY_IN: Final = ["self", "copy_stmt", "source", "timeout"]

APPLICATION_NAME = "otel-audit"
"""Name of our connections in ``pg_stat_activity``."""

Connection = asyncpg.Connection

# the driver raises the third where a connection ends between two of its own steps
BROKEN: Final = (PostgresError, InterfaceError, InternalClientError, OSError)
"""Errors of a question: the server's, the driver's, and the network's."""

_OF_FILES: Final = frozenset(
    {
        errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.EFBIG,
        errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG,
    }
)  # fmt: skip
"""Numbers of an OSError that no open connection has: a file of the caller's has them."""

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[Any]
else:
    _Connection = asyncpg.Connection

__all__ = [
    "ANSWER",
    "APPLICATION_NAME",
    "BROKEN",
    "Connection",
    "InsufficientPrivilegeError",
    "InterfaceError",
    "LockNotAvailableError",
    "OwnConnection",
    "PostgresError",
    "QueryCanceledError",
    "TimeLimits",
    "UndefinedFunctionError",
    "connect",
    "disconnect",
    "disconnect_later",
    "disconnected",
    "is_pooled",
    "refuse_unreplicated",
    "translated_errors",
    "wait_until_durable",
]

_LOOK_FOR_CLIENT: Final = 10.0
"""Seconds after which the server checks whether its client is still there."""

_CACHED_STATEMENTS: Final = 100
"""Prepared statements that a connection keeps, as asyncpg does by default."""

# no tcp_user_timeout: Linux then cuts also a server that is there and does not read for a while
_KEEPALIVES: Final = {
    "keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
}  # fmt: skip
"""Socket options where the DSN does not say otherwise: a server that is gone is known in a minute,
and not after two hours."""

ANSWER: Final = 60.0
"""Seconds after which a store that does not answer one statement counts as away, for what runs for
ever. Ten times what the largest of its statements takes, and longer than the wait for a lock."""

_PATIENCE: Final = 2.0
"""Seconds for cancelling the running statement in the server and closing the connection."""

# to receive data, to read it, to read the end of the stream, to notify the connection
_TURNS_TO_READ: Final = 4

_SYNC_WAIT: Final = "SyncRepWaitForLSN"
"""The server's function that warns where a COMMIT did not wait for the synchronous standby."""

# before it is known whether there is a pooler: no statement may be prepared for it
_LOOK: Final = """
SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('synchronous_commit'),
       extract(epoch FROM pg_catalog.current_setting('statement_timeout')::interval),
       extract(epoch FROM pg_catalog.current_setting('lock_timeout')::interval),
       extract(epoch FROM
               pg_catalog.current_setting('idle_in_transaction_session_timeout')::interval)
"""
# WAL of its own makes a transaction wait at COMMIT: for the disk, and for a synchronous standby
_WRITE_WAL: Final = "SELECT pg_catalog.pg_logical_emit_message(true, 'otel_audit', '')"

_known_poolers: set[str] = set()
"""Connection strings behind which there is a pooler."""

_leaving: set[asyncio.Task[None]] = set()


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Time limits of one connection in the server, in seconds. Stricter ones of the server stay.

    Attributes:
        statement: For one statement; 0: as long as it takes, while this process is there.
        lock: For waiting for one lock.
        idle: For a transaction without a statement.
        settings: More that is set, such as ``jit = off``.
        answer: Not in the server but here: for one answer, after which the connection is closed;
            0: any. For what runs for ever and must notice where the store stands still.
    """

    statement: float = 0.0
    # a lock that is not free within 30 s is held by something that hangs, or by a migration
    lock: float = 30.0
    # between two statements a file may be written or a person asked, but not for ten minutes
    idle: float = 600.0
    settings: tuple[str, ...] = ()
    answer: float = 0.0

    @classmethod
    def of_statements(cls, seconds: float) -> TimeLimits:
        """For statements that wait for this long here, too."""
        # a lock's limit is reached first, because its error says what was waited for; 10 s between
        # two statements are for a process that is short of CPU
        return cls(seconds, seconds * 0.75, max(seconds * 2, 10.0))


class OwnConnection(_Connection):
    """A connection of ours.

    Attributes:
        is_pooled: A pooler stands between here and the server.
        settings: What follows each BEGIN there.
        is_unreplicated: A COMMIT did not wait for the synchronous standby to have it.
        patience: Seconds that an answer may take, 0: any. Then the connection is closed here: the
            server's own limits do not help where nothing arrives from it any more.
    """

    is_pooled: bool = False
    settings: str = ""
    is_unreplicated: bool = False
    patience: float = 0.0

    async def execute(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109 - asyncpg's own
    ) -> str:
        """Execute; behind a pooler in a transaction that has our settings.

        A connection whose BEGIN fails or is cancelled is closed.
        """
        if not self.patience:  # delivery's has limits of its own, and many statements
            return await self._executed(query, *args, timeout=timeout)
        async with self._answer():
            return await self._executed(query, *args, timeout=timeout)

    @asynccontextmanager
    async def _answer(self) -> AsyncIterator[None]:
        """Limit the wait for one answer."""
        if not self.patience:
            yield
            return
        try:
            async with asyncio.timeout(self.patience) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            # else its transaction would wait for the answer to a ROLLBACK, too
            self.terminate()
            raise StoreUnavailableError(
                f"the audit store (OTEL_AUDIT_DSN) has not answered for {self.patience:g} s"
            ) from None

    async def _executed(
        self,
        query: str,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109 - asyncpg's own
    ) -> str:
        if not query.startswith("BEGIN"):
            if self.is_pooled and not self.is_in_transaction():
                async with self.transaction():
                    return await super().execute(query, *args, timeout=timeout)
            return await super().execute(query, *args, timeout=timeout)
        if self.is_pooled and not self.is_in_transaction():
            query = f"{query.rstrip('; ')}; {self.settings}"
        try:
            return await super().execute(query, *args, timeout=timeout)
        except BaseException:
            # it may have begun, and the driver would take each later transaction for a part of it
            self.terminate()
            raise

    async def fetch(self, *args: Any, **options: Any) -> list[Any]:
        """Fetch rows; as `execute`."""
        async with self._answer():
            if self.is_pooled and not self.is_in_transaction():
                async with self.transaction():
                    return await super().fetch(*args, **options)
            return await super().fetch(*args, **options)

    async def fetchrow(self, *args: Any, **options: Any) -> Any:
        """Fetch a row; as `execute`."""
        async with self._answer():
            if self.is_pooled and not self.is_in_transaction():
                async with self.transaction():
                    return await super().fetchrow(*args, **options)
            return await super().fetchrow(*args, **options)

    async def fetchval(self, *args: Any, **options: Any) -> Any:
        """Fetch a value; as `execute`."""
        async with self._answer():
            if self.is_pooled and not self.is_in_transaction():
                async with self.transaction():
                    return await super().fetchval(*args, **options)
            return await super().fetchval(*args, **options)

    @classmethod
    def can_copy_then(cls) -> bool:
        """Return whether the driver still has what `copy_then` is made of: it is not public."""
        own = getattr(cls, "_copy_in", None)
        return own is not None and list(signature(own).parameters) == _COPY_IN

    async def copy_then(
        self,
        copy: str,
        then: str,
        source: AsyncIterable[bytes],
        timeout: float,  # noqa: ASYNC109 - asyncpg's own
    ) -> str:
        """Copy, and execute one more statement, in one transaction and one message to the server.

        Args:
            copy: ``COPY ... FROM STDIN``.
            then: What follows when all is copied.
            source: What is copied.
            timeout: Seconds for all of it.

        Returns:
            The status of the second one.
        """
        # a limit of its own would start a task for every piece
        async with asyncio.timeout(timeout):
            status: str = await self._copy_in(  # type: ignore[attr-defined]
                f"{copy}; {then}", source, None
            )
        return status

    async def process_incoming(self) -> None:
        """Let the loop read what the server said since, such as that it has closed the connection.

        Costs one look at the socket where it has said nothing.
        """
        if self._is_quiet():
            return
        for _ in range(_TURNS_TO_READ):
            await asyncio.sleep(0)

    def _is_quiet(self) -> bool:
        transport = self._transport  # type: ignore[attr-defined]
        if transport is None:
            return False
        link = transport.get_extra_info("socket")
        if link is None or transport.is_closing() or not hasattr(select, "poll"):
            return False
        look = select.poll()
        look.register(link.fileno(), select.POLLIN)
        return not look.poll(0)

    def keep_alive(self, wanted: Mapping[str, int]) -> None:
        """Set socket options as libpq does."""
        link = self._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        if link is None or link.family == getattr(socket, "AF_UNIX", None):
            return
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, wanted.get("keepalives", 1))
        for name, option in (
            ("keepalives_idle", "TCP_KEEPIDLE"),
            ("keepalives_interval", "TCP_KEEPINTVL"),
            ("keepalives_count", "TCP_KEEPCNT"),
            ("tcp_user_timeout", "TCP_USER_TIMEOUT"),
        ):
            if wanted.get(name) and hasattr(socket, option):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), wanted[name])

    async def limit(self, limits: TimeLimits) -> None:
        """Set limits, and that COMMIT waits until what it commits is durable."""
        found: list[bytes] = []

        async def read(data: bytes) -> None:
            found.append(data)

        # COPY, as its answer comes without a prepared statement
        await self.copy_from_query(_LOOK, output=read)
        pid, commit, *numbers = b"".join(found).decode().split()
        self.is_pooled = self.is_pooled or int(pid) != self.get_server_pid()
        settings = list(_settings(limits, commit, *map(float, numbers)))
        # only some systems let the server look for its client
        looking = f"client_connection_check_interval = {_milliseconds(_LOOK_FOR_CLIENT)}"
        word = "SET LOCAL" if self.is_pooled else "SET"
        for wanted in ([*settings, looking], settings):
            self.settings = "; ".join(f"{word} {setting}" for setting in wanted)
            try:
                if self.is_pooled:
                    await super().execute(f"BEGIN; {self.settings}")
                    await super().execute("ROLLBACK")
                else:
                    await super().execute(self.settings)
            except (
                asyncpg.InvalidParameterValueError,
                asyncpg.UndefinedObjectError,
                asyncpg.FeatureNotSupportedError,
            ):
                if wanted is settings:
                    raise
                if self.is_in_transaction():
                    await super().execute("ROLLBACK")
                continue
            return


async def connect(
    dsn: str,
    timeout: float | None = None,  # noqa: ASYNC109 - said in the error
    limits: TimeLimits = TimeLimits(),
) -> OwnConnection:
    """Open a connection of our own.

    Args:
        dsn: As `otel_audit._util.postgres_dsn.read_dsn` takes it.
        timeout: Seconds that it may take, the look-up of the host's name included; None: as
            OTEL_AUDIT_CONNECT_TIMEOUT says.
        limits: What the server lets it do.

    Returns:
        The connection.

    Raises:
        StoreUnavailableError: No server answers, or it accepts no connections now.
        StoreError: The DSN cannot be read, or user, password or database are refused.
    """
    try:
        target = read_dsn(dsn)
    except ValueError as error:
        raise StoreError(f"OTEL_AUDIT_DSN cannot be read: {error}") from None
    _refuse_missing_files(target)
    allowed = AuditConfig().connect_timeout if timeout is None else timeout
    seconds = min(allowed, target.connect_timeout or allowed)
    with suppress_instrumentation():
        try:
            async with asyncio.timeout(seconds) as limit:
                return await _connected(target, limits)
        except TimeoutError as error:
            if not limit.expired():
                raise as_connect_error(error, target.settings) from None
            setting = "OTEL_AUDIT_CONNECT_TIMEOUT" if timeout is None else "connecting may take"
            raise StoreUnavailableError(
                f"could not connect to the audit store (OTEL_AUDIT_DSN): no answer in time, "
                f"{seconds:g} s ({setting}): can its host's name be looked up, and is its port "
                "let through?"
            ) from None
        except (ValueError, OverflowError):  # the original message may quote parts of the password
            raise StoreError(
                "OTEL_AUDIT_DSN cannot be read, or its options do not fit: it must look like "
                "postgresql://user:password@host:5432/database, special characters percent-encoded"
            ) from None
        except Exception as error:  # noqa: BLE001 - each becomes one of ours
            raise as_connect_error(error, target.settings) from None


async def _connected(target: PostgresDsn, limits: TimeLimits) -> OwnConnection:
    if target.url in _known_poolers:
        target.is_pooled = True
    connection = await _opened(target)
    try:
        await connection.limit(limits)
        if connection.is_pooled and not target.is_pooled:
            # what could have been prepared until now was not: only the cache must go
            _known_poolers.add(target.url)
            target.is_pooled = True
            await disconnect(connection)
            connection = await _opened(target)
            await connection.limit(limits)
    except BaseException:
        connection.terminate()
        raise
    connection.add_log_listener(_on_log_message)
    connection.patience = limits.answer
    return connection


@contextmanager
def translated_errors(doing: str, *, asks: bool = False) -> Iterator[None]:
    """Turn errors of the store, met within, into ours, which name the remedy.

    Any other error is left as it is: a defect, which must not seem to be the store's, or what the
    caller raises itself.

    Args:
        doing: What is done, in the infinitive.
        asks: As for `otel_audit_postgres.errors.as_store_error`.

    Raises:
        StoreUnavailableError: The store cannot be reached now.
        StoreError: The store is not what it must be, or the role lacks a right.
    """
    try:
        yield
    except BROKEN as error:
        if isinstance(error, OSError) and (error.filename or error.errno in _OF_FILES):
            raise
        # what went wrong first says more than that a transaction could not be undone after it
        first = error.__context__
        if isinstance(first, OtelAuditError):
            raise first from None
        raise as_store_error(error, doing, asks=asks) from None


async def _opened(target: PostgresDsn) -> OwnConnection:
    named = "application_name" in target.settings
    connection: OwnConnection = await asyncpg.connect(
        target.url,
        server_settings={} if named else {"application_name": APPLICATION_NAME},
        connection_class=OwnConnection,
        ssl=ssl.create_default_context() if target.uses_system_certificates else None,
        statement_cache_size=0 if target.is_pooled else _CACHED_STATEMENTS,
    )
    connection.is_pooled = target.is_pooled
    connection.keep_alive(_KEEPALIVES | target.keepalives)
    return connection


def is_pooled(connection: Connection[Any]) -> bool:
    """Return whether there is a pooler in front of the server."""
    return isinstance(connection, OwnConnection) and connection.is_pooled


async def wait_until_durable(connection: Connection[Any]) -> None:
    """Wait until all that can be seen now is durable: on disk, and on a synchronous standby.

    A row may be seen whose COMMIT was cut off while it waited. A statement that only finds it
    there writes nothing, and so waits for no other.

    Raises:
        StoreUnavailableError: It is not known to be.
    """
    await connection.execute(_WRITE_WAL)
    refuse_unreplicated(connection)


def refuse_unreplicated(connection: Connection[Any]) -> None:
    """Raise if a COMMIT did not wait for the synchronous standby because it was cancelled.

    Raises:
        StoreUnavailableError: It has not.
    """
    if isinstance(connection, OwnConnection) and connection.is_unreplicated:
        raise StoreUnavailableError(
            "what was committed is not known to be on the synchronous standby: waiting for it was "
            "cut off in the server; does the standby run?"
        )


async def disconnect(connection: Connection[Any]) -> None:
    """Close a connection on which a statement may still run, and cancel it in the server."""
    try:
        async with asyncio.timeout(_PATIENCE):
            await connection.close()
    except Exception:  # noqa: BLE001 - it is gone either way
        connection.terminate()
    except BaseException:
        connection.terminate()
        raise


def disconnect_later(connection: Connection[Any]) -> None:
    """Close a connection as `disconnect`, while the caller continues; see `disconnected`."""
    task = asyncio.get_running_loop().create_task(disconnect(connection))
    _leaving.add(task)
    task.add_done_callback(partial(_left, connection))


def _left(connection: Connection[Any], task: asyncio.Task[None]) -> None:
    _leaving.discard(task)
    # a loop that ends may cancel a task before its first step, which then has closed nothing
    if task.cancelled() and not connection.is_closed():
        connection.terminate()


async def disconnected() -> None:
    """Wait until what was left by `disconnect_later` on this event loop is closed."""
    loop = asyncio.get_running_loop()
    mine = [task for task in list(_leaving) if task.get_loop() is loop]
    if mine:
        await asyncio.wait(mine, timeout=_PATIENCE)


def _on_log_message(connection: object, message: PostgresLogMessage) -> None:
    # by the function's name, as the text is in the server's language
    if message.server_source_function == _SYNC_WAIT and isinstance(connection, OwnConnection):
        connection.is_unreplicated = True


def _settings(
    limits: TimeLimits, commit: str, statement: float, lock: float, idle: float
) -> Iterator[str]:
    for name, ours, theirs in (
        ("statement_timeout", limits.statement, statement),
        ("lock_timeout", limits.lock, lock),
        ("idle_in_transaction_session_timeout", limits.idle, idle),
    ):
        wanted = min(ours or theirs, theirs or ours)
        yield f"{name} = {_milliseconds(wanted)}"
    # the store's functions hold texts with backslashes, and are parsed in this session
    yield "standard_conforming_strings = on"
    # what the server warns of has to reach us
    yield "client_min_messages = warning"
    yield from limits.settings
    # whatever the role's or the server's default is
    yield f"synchronous_commit = {'remote_apply' if commit == 'remote_apply' else 'on'}"


def _milliseconds(seconds: float) -> int:
    return max(int(seconds * 1000), 1) if seconds else 0


def _refuse_missing_files(target: PostgresDsn) -> None:
    """Name a file of the DSN that is not there: its absence is not a server's."""
    for name, path in target.files.items():
        if not Path(path).exists():
            raise StoreError(f"OTEL_AUDIT_DSN: parameter {name}: there is no file {path}")
