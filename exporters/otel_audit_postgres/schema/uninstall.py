"""Removes the audit store from a database: all records, tables, functions and guards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.errors import StoreError
from otel_audit_postgres.connection import Connection, PostgresError, connect, disconnect
from otel_audit_postgres.errors import as_store_error
from otel_audit_postgres.schema.install import LOCK, PERMIT
from otel_audit_postgres.schema.lock import alone
from otel_audit_postgres.schema.roles import OWNER, READER, RETENTION, SEALER, WRITER, quoted

_GROUPS: Final = (
    WRITER, READER, SEALER, RETENTION, "otel_audit_streamer", "otel_audit_maintainer", OWNER,
)  # fmt: skip
_FOUND: Final = """
SELECT (SELECT count(*) FROM audit.audit_logs) AS records,
       (SELECT min(recorded_at) FROM audit.audit_logs) AS first,
       (SELECT max(recorded_at) FROM audit.audit_logs) AS last,
       (SELECT count(*) FROM audit.active_holds()) AS holds,
       current_database() AS database
"""
_STATEMENTS: Final = (
    "DROP EVENT TRIGGER IF EXISTS otel_audit_refuse_ddl",
    "DROP EVENT TRIGGER IF EXISTS otel_audit_refuse_drop",
    "DROP SCHEMA IF EXISTS audit_guard CASCADE",
    "DROP SCHEMA audit CASCADE",
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What an uninstallation removes.

    Attributes:
        database: The database's name.
        records: How many records.
        first, last: When the first and the last of them were stored.
        holds: Legal holds in force.
    """

    database: str
    records: int
    first: datetime | None
    last: datetime | None
    holds: int


async def contents(dsn: str) -> Contents:
    """Look at what would be removed.

    Raises:
        StoreError: There is no audit store, or this role may not look.
    """
    async with _opened(dsn) as connection:
        if not await connection.fetchval("SELECT to_regclass('audit.audit_logs') IS NOT NULL"):
            raise StoreError("there is no audit store in this database: nothing to remove")
        row = await connection.fetchrow(_FOUND)
        assert row is not None  # noqa: S101 - a SELECT without FROM has a row
        return Contents(row["database"], row["records"], row["first"], row["last"], row["holds"])


async def drop_group_roles(dsn: str) -> list[str] | None:
    """Remove the group roles that a removed store has left.

    Returns:
        What was done, one line each; None if there is a store, which needs them.
    """
    async with _opened(dsn) as connection:
        if await connection.fetchval("SELECT to_regclass('audit.audit_logs') IS NOT NULL"):
            return None
        return [await _drop_role(connection, role) for role in _GROUPS]


async def uninstall(dsn: str, *, drop_roles: bool = False) -> list[str]:
    """Remove the audit store.

    Args:
        dsn: The database, as the owner of schema audit, or a superuser where it is guarded.
        drop_roles: Remove the group roles, too, where no other database uses them.

    Returns:
        What was done, one line each.

    Raises:
        StoreError: A legal hold is in force, or a right is missing; nothing was removed.
    """
    found = await contents(dsn)
    if found.holds:
        raise StoreError(
            f"{found.holds} legal holds are in force: nothing was removed; see otel-audit hold list"
        )
    lines = [f"schema audit: removed, with {found.records} records"]
    async with _opened(dsn) as connection:
        async with connection.transaction():
            await alone(connection, LOCK, "remove the audit store")
            await connection.execute(PERMIT)
            for statement in _STATEMENTS:
                await connection.execute(statement)
        if drop_roles:
            lines += [await _drop_role(connection, role) for role in _GROUPS]
    return lines


async def _drop_role(connection: Connection[Any], role: str) -> str:
    known = "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)"
    if not await connection.fetchval(known, role):
        return f"role {role}: was not there"
    try:
        async with connection.transaction():
            await connection.execute(f"DROP OWNED BY {quoted(role)}")
            await connection.execute(f"DROP ROLE {quoted(role)}")
    except PostgresError:
        return f"role {role}: kept, as another database uses it or a right is missing"
    return f"role {role}: removed"


@asynccontextmanager
async def _opened(dsn: str) -> AsyncIterator[Connection[Any]]:
    with suppress_instrumentation():
        connection = await connect(dsn)
        try:
            yield connection
        except PostgresError as error:
            raise as_store_error(error, "remove the audit store", sets_up=True) from error
        finally:
            await disconnect(connection)
