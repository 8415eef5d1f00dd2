"""Large batches into the store by COPY, which costs less CPU a row than parameters do.

Row-level security forbids a role that it binds to COPY into the table itself, and COPY knows no ON
CONFLICT. So the rows are copied into a temporary table of the connection's own, and go from there
into ``audit.audit_logs``, in one transaction and one message to the server. The table is always
named with its schema, so that no search_path decides which one it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from operator import attrgetter
from typing import Final

from otel_audit._util.ratelimited_log import log_limited
from otel_audit_postgres.connection import OwnConnection, is_pooled
from otel_audit_postgres.copy_format import in_pieces
from otel_audit_postgres.errors import is_refusal, sqlstate
from otel_audit_postgres.rows import COLUMNS, Row

_logger = logging.getLogger(__name__)

SMALLEST_LOAD: Final = 150
"""Rows from which on loading pays.

Measured with records of about 2 KB, microseconds of CPU a row in the client and the server, COPY
against one statement: 86 + 247 and 69 + 155 for 10 rows, 34 + 109 and 31 + 96 for 50, 29 + 93 and
27 + 92 for 100, 27 + 85 and 28 + 87 for 200, 26 + 78 and 28 + 78 for 512.
"""

_TABLE: Final = "otel_audit_batch"
_NAMES: Final = ", ".join(name for name, _ in COLUMNS)
_DEFINITIONS: Final = ", ".join(f"{name} pg_catalog.{kind}" for name, kind in COLUMNS)
# a row of a few kilobytes is not compressed on its way: the trigger reads its payload several times
_CREATE: Final = (
    f"CREATE TEMPORARY TABLE pg_temp.{_TABLE} ({_DEFINITIONS}) "
    "WITH (toast_tuple_target = 8160) ON COMMIT DELETE ROWS"
)
_COPY: Final = f"COPY pg_temp.{_TABLE} ({_NAMES}) FROM STDIN (FORMAT binary)"
_INSERT_NEW: Final = (
    f"INSERT INTO audit.audit_logs ({_NAMES}) SELECT {_NAMES} "  # noqa: S608 - constants
    f"FROM pg_temp.{_TABLE} "
    # the key is id and tenant: an id that another tenant's record has is taken, too
    "WHERE id <> ALL (ARRAY(SELECT taken.id FROM audit.audit_logs AS taken "
    f"WHERE taken.id = ANY (ARRAY(SELECT id FROM pg_temp.{_TABLE}))))"
)
_INSERT: Final = f"{_INSERT_NEW} ON CONFLICT DO NOTHING"

_copied: Final = attrgetter("copied", "payload")

_UNIQUE_VIOLATION: Final = "23505"
_NOT_HERE: Final = ("0A", "25P", "26", "3F", "42", "53")
"""Classes of errors that loading may meet where a plain statement does not: no right to temporary
tables, no room for them, or a proxy that hands every transaction to another backend."""


class Loader:
    """Loads batches over one connection, for as long as that works there."""

    def __init__(self, connection: OwnConnection, statement_timeout: float) -> None:
        """Remember the connection; nothing is sent yet.

        Args:
            connection: To the store.
            statement_timeout: Seconds that one step may take.
        """
        self._connection = connection
        self._timeout = statement_timeout
        self._is_prepared = False
        # ON CONFLICT costs each row something, and is needed only where another connection inserts
        # a row of the batch in the same moment
        self._insert = _INSERT_NEW
        # a temporary table is a session's, and behind a pooler there is none; another version of
        # the driver may copy in another way
        self._is_possible = not is_pooled(connection) and connection.can_copy_then()

    async def load(self, rows: Iterable[Row]) -> int | None:
        """Store rows; return only after they are committed.

        Args:
            rows: The batch, taken once: each row only when those before it are on their way.

        Returns:
            How many of them are new in the store; None if none was stored and a plain statement
            must be tried: it works, or says what is wrong.

        Raises:
            Exception: Whatever else the server or the connection report; nothing was stored, or,
                where COMMIT was not answered, nothing is known to be. The connection can be used
                on after an error that a row's content causes, after others it cannot.
        """
        if not self._is_possible:
            return None
        try:
            if not self._is_prepared:
                await self._connection.execute(_CREATE, timeout=self._timeout)
                self._is_prepared = True
            return await self._load(rows)
        except Exception as error:
            if not _leaves_connection(error):
                raise
            if self._insert is _INSERT_NEW and sqlstate(error) == _UNIQUE_VIOLATION:
                self._insert = _INSERT
                return None
            # a table that cannot be made, such as where pages are smaller, is not a record's fault
            if is_refusal(error) and self._is_prepared:
                raise
            self._give_up(error)
            return None

    async def _load(self, rows: Iterable[Row]) -> int:
        source = _one_by_one(in_pieces(map(_copied, rows)))
        status = await self._connection.copy_then(_COPY, self._insert, source, self._timeout)
        return int(status.rpartition(" ")[2])

    def _give_up(self, error: Exception) -> None:
        self._is_possible = False
        log_limited(
            _logger,
            "loading",
            "Batches are written without COPY over this connection [%s], which stores the same "
            "and takes more CPU; COPY needs the right TEMPORARY on the database, and "
            "a connection that is not pooled by transaction",
            f"{type(error).__name__} {sqlstate(error)}",
            level=logging.INFO,
        )


def _leaves_connection(error: Exception) -> bool:
    """Return whether the connection is as good as before, once what was begun is rolled back."""
    state = sqlstate(error)
    return bool(state) and (state.startswith(_NOT_HERE) or is_refusal(error))


async def _one_by_one(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Make each piece only when the one before it has been taken off."""
    task = asyncio.current_task()
    for piece in pieces:
        if task is not None and task.cancelling():
            # it ends here: after the last piece the server inserts, and commits
            await asyncio.sleep(0)
        yield piece
