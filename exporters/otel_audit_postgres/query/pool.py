"""Connections for a service that queries the trail for many users: a few, kept open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit_postgres.connection import (
    BROKEN,
    Connection,
    QueryCanceledError,
    TimeLimits,
    connect,
    disconnect,
)
from otel_audit_postgres.errors import MIGRATE, as_store_error, is_missing
from otel_audit_postgres.query.queries import PLANS
from otel_audit_postgres.query.trail import ReaderScope, Trail, Views
from otel_audit_postgres.schema.migrations import latest_version

_CONNECT_TIMEOUT: Final = 5.0
"""Seconds: a person waits for the page."""
_REPEATED_WITHIN: Final = 60.0
"""Seconds in which a page that is loaded again, and shows as many records, is the same look."""
_MOST_REMEMBERED: Final = 10_000
"""Looks that are remembered; a forgotten one is recorded again."""
_VERSION: Final = "SELECT max(version) FROM audit.schema_version"
_BUSY: Final = (
    "all connections to the audit store are in use: try again in a moment, or let there be more"
)
_OWN_BUSY: Final = (
    "all connections to the audit store that one person may have are in use, by your own pages, "
    "exports and reports: try again when one of them has ended"
)


class TookTooLongError(StoreError):
    """A statement took longer than it may."""

    def __init__(self, seconds: float) -> None:
        """Make the message; it says how to ask for less.

        Args:
            seconds: The limit that was exceeded.
        """
        super().__init__(
            f"this takes longer than {seconds:g} s: ask for less, such as time:7d, one actor: or "
            "one event:"
        )


CONNECTIONS: Final = 4
"""Connections of a viewer's process; who finds none free for `statement_timeout` is asked to try
again."""
STATEMENT_TIMEOUT: Final = 5.0
"""Seconds of one statement: a person waits for its page, and the store has other work."""


class TrailPool:
    """Hands out trails, each for one person and one piece of work."""

    def __init__(
        self,
        dsn: str,
        *,
        size: int = CONNECTIONS,
        statement_timeout: float = STATEMENT_TIMEOUT,
        views: Views = "required",
    ) -> None:
        """Open nothing yet.

        Args:
            dsn: The audit store, as a role that may read it.
            size: Connections at once.
            statement_timeout: Seconds that one statement may take.
            views: As for `otel_audit_postgres.query.trail.open_trail`.
        """
        self._dsn = dsn
        self._limits = TimeLimits(
            statement=statement_timeout, lock=statement_timeout, settings=PLANS
        )
        self._patience = statement_timeout
        self._views: Views = views
        self._turns = asyncio.Semaphore(size)
        # who takes a file slowly, or several, leaves some for those who look
        self._long_turns = asyncio.Semaphore(max(1, size // 2))
        # whoever opens many pages at once waits for his own, and not others for him
        self._most_of_one = max(1, size // 2)
        self._most_long_of_one = max(1, size // 4)
        self._shares: dict[str, _Share] = {}
        self._idle: list[Connection[Any]] = []
        self._looks: dict[tuple[object, ...], float] = {}

    @asynccontextmanager
    async def connection(
        self, *, viewer: str | None = None, is_long: bool = False
    ) -> AsyncIterator[Connection[Any]]:
        """Lend a connection.

        Args:
            viewer: Who looks, and has half of the connections at most, exports and reports
                included, which have a quarter at most (both at least one); None: the process
                itself.
            is_long: For an export or a report; those of all have half of the connections at most.

        Raises:
            StoreUnavailableError: None is free in time, or the store cannot be reached.
            StoreError: The query cannot be answered.
        """
        async with AsyncExitStack() as turns:
            if viewer is not None:
                share = turns.enter_context(self._share(viewer))
                for turn in (share.long_turns, share.turns) if is_long else (share.turns,):
                    await self._wait_for(turn, _OWN_BUSY)
                    turns.callback(turn.release)
            for turn in (self._long_turns, self._turns) if is_long else (self._turns,):
                await self._wait_for(turn, _BUSY)
                turns.callback(turn.release)
            # not for all of it: a stream begins in one context and continues in another
            with suppress_instrumentation():
                connection = await self._taken()
            try:
                yield connection
            except QueryCanceledError:
                raise TookTooLongError(self._patience) from None
            except BROKEN as error:
                failed = as_store_error(error, "read the audit store", asks=True)
                raise await _older_schema(connection, error) or failed from None
            finally:
                await self._given_back(connection)

    @contextmanager
    def _share(self, viewer: str) -> Iterator[_Share]:
        share = self._shares.get(viewer)
        if share is None:
            share = self._shares[viewer] = _Share(
                asyncio.Semaphore(self._most_of_one), asyncio.Semaphore(self._most_long_of_one)
            )
        share.users += 1
        try:
            yield share
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[viewer]

    async def _wait_for(self, turn: asyncio.Semaphore, why_not: str) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await turn.acquire()
        except TimeoutError:
            raise StoreUnavailableError(why_not, retry_after=1.0) from None

    @asynccontextmanager
    async def trail(
        self, viewer: str, scope: ReaderScope, views: Views | None = None
    ) -> AsyncIterator[Trail]:
        """Open the trail for a viewer.

        Args:
            viewer: Who looks, for the records of it.
            scope: What this person may see.
            views: Other than the pool's.
        """
        async with self.connection(viewer=viewer) as connection:
            looks: list[tuple[object, ...]] = []

            def is_repeated(look: tuple[object, ...]) -> bool:
                return time.monotonic() - self._looks.get(look, -_REPEATED_WITHIN) < (
                    _REPEATED_WITHIN
                )

            with suppress_instrumentation():
                yield Trail(
                    connection,
                    views=views or self._views,
                    viewer=viewer,
                    scope=scope,
                    is_repeated=is_repeated,
                    on_recorded=looks.append,
                )
            self._remember(looks)

    def _remember(self, looks: list[tuple[object, ...]]) -> None:
        """Remember what was recorded, from now on."""
        now = time.monotonic()
        for look in looks:
            # at the end: the first one is forgotten first
            self._looks.pop(look, None)
            self._looks[look] = now
        while len(self._looks) > _MOST_REMEMBERED:
            del self._looks[next(iter(self._looks))]

    async def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            await disconnect(self._idle.pop())

    async def _taken(self) -> Connection[Any]:
        while self._idle:
            connection = self._idle.pop()
            try:
                # the server may have ended it meanwhile, or cannot be reached any more
                async with asyncio.timeout(_CONNECT_TIMEOUT):
                    await connection.execute("SELECT")
            except BROKEN:
                await disconnect(connection)
            except BaseException:  # who asked has gone away
                connection.terminate()
                raise
            else:
                return connection
        return await connect(self._dsn, _CONNECT_TIMEOUT, self._limits)

    async def _given_back(self, connection: Connection[Any]) -> None:
        # what was left in a transaction is not known to be clean
        if connection.is_closed() or connection.is_in_transaction():
            await disconnect(connection)
        else:
            self._idle.append(connection)


@dataclass(slots=True)
class _Share:
    """One person's share of the connections, and how many of his requests use or await it.

    Attributes:
        turns: For anything.
        long_turns: For exports and reports, which take one of both.
        users: Requests that use it, or wait for it.
    """

    turns: asyncio.Semaphore
    long_turns: asyncio.Semaphore
    users: int = 0


async def _older_schema(connection: Connection[Any], error: BaseException) -> StoreError | None:
    """The error for a store of an older schema; None if it is up to date."""
    if not is_missing(error) or connection.is_closed() or connection.is_in_transaction():
        return None
    try:
        version = await connection.fetchval(_VERSION)
    except BROKEN:
        return None
    if version is None or version >= latest_version():
        return None
    return StoreError(
        f"the audit store is of an older version: its schema is at {version}, and "
        f"{latest_version()} is needed here: {MIGRATE}"
    )
