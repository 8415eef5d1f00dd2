"""Exclusive schema changes; a timeout names the holder of the lock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from otel_audit.errors import StoreUnavailableError
from otel_audit_postgres.connection import Connection, LockNotAvailableError

PATIENCE: Final = "SET LOCAL lock_timeout = '30s'"

# not by to_regclass, which is refused where the role may not use the schema
_MAY_LOCK: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname || '.' || c.relname = $1 AND c.relkind = 'r'
      AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'UPDATE'))
"""
_HOLDERS: Final = """
SELECT l.pid, a.usename, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.locktype = 'advisory' AND (l.classid::bigint << 32 | l.objid::bigint) = $1 AND NOT $3
       OR l.locktype = 'relation' AND $3 AND l.mode IN (
           'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
           'AccessExclusiveLock')
       AND l.relation = (SELECT c.oid FROM pg_catalog.pg_class c
                         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                         WHERE n.nspname || '.' || c.relname = $2))
"""


@dataclass(frozen=True, slots=True)
class SchemaLock:
    """The lock under which a schema is changed.

    Attributes:
        key: Of the advisory lock that stands for it before there is a table.
        table: The table that is locked then. Only those who may change it can.
    """

    key: int
    table: str

    @property
    def of_key(self) -> str:
        """The statement that takes the advisory lock."""
        return f"SELECT pg_advisory_xact_lock({self.key})"

    @property
    def of_table(self) -> str:
        """The statement that locks the table. Whoever reads or inserts does not wait."""
        return f"LOCK TABLE {self.table} IN SHARE UPDATE EXCLUSIVE MODE"


async def alone(connection: Connection[Any], lock: SchemaLock, doing: str) -> None:
    """Wait for a lock; the error names its holder.

    Everybody who can connect can take an advisory lock, so it is taken only where there is no table
    yet, or by a role that gets its rights to it later in this transaction.

    Args:
        connection: Within a transaction, which has the lock until it ends.
        lock: Which.
        doing: What it is for, in the infinitive.

    Raises:
        StoreUnavailableError: Somebody kept it for longer than 30 seconds.
    """
    await connection.execute(PATIENCE)
    by_table = await connection.fetchval(_MAY_LOCK, lock.table)
    try:
        async with connection.transaction():
            await connection.execute(lock.of_table if by_table else lock.of_key)
    except LockNotAvailableError:
        holders = await connection.fetch(_HOLDERS, lock.key, lock.table, by_table)
        who = "; ".join(
            f"process {pid} of role {role} (application {application!r}): if it changes no schema, "
            f"end it: SELECT pg_terminate_backend({pid})"
            for pid, role, application in holders
        )
        raise StoreUnavailableError(
            f"could not {doing}: another session holds its lock: {who or 'try again'}"
        ) from None
