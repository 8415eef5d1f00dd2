"""An event that the application records by hand, in its own open transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from otel_audit.errors import ConfigurationError
from otel_audit.orm.outbox import write_records

if TYPE_CHECKING:
    from collections.abc import Awaitable


def enlist(
    session: Any, row: tuple[str, str], on_connection: Callable[[Connection], None]
) -> Awaitable[None] | None:
    """Write a record in a session's transaction, beginning one if there is none.

    Args:
        session: A session or connection of SQLAlchemy, asynchronous or not.
        row: The record's id and its JSON text.
        on_connection: Called with the connection.

    Returns:
        Something to await, for an asynchronous session or connection; else None.

    Raises:
        ConfigurationError: It is not a session.
        StoreError: The outbox does not take it.
    """
    if isinstance(session, AsyncSession | async_scoped_session | AsyncConnection):
        return _enlist_async(session, row, on_connection)
    if isinstance(session, Session | scoped_session):
        session = session.connection()
    if not isinstance(session, Connection):
        raise ConfigurationError(
            "emit_in_transaction(): a Session, AsyncSession, Connection or AsyncConnection of "
            f"SQLAlchemy is needed, not {type(session).__name__}"
        )
    _write(session, row, on_connection)
    return None


async def _enlist_async(
    session: AsyncSession | async_scoped_session[Any] | AsyncConnection,
    row: tuple[str, str],
    on_connection: Callable[[Connection], None],
) -> None:
    def write(within: Session | Connection) -> None:
        connection = within if isinstance(within, Connection) else within.connection()
        _write(connection, row, on_connection)

    if isinstance(session, AsyncConnection):
        await session.run_sync(write)
    else:
        found = session() if isinstance(session, async_scoped_session) else session
        await found.run_sync(write)


def _write(
    connection: Connection, row: tuple[str, str], on_connection: Callable[[Connection], None]
) -> None:
    write_records(connection, [row])
    on_connection(connection)
