"""Exclusive schema changes; a timeout names the holder of the lock."""

from __future__ import annotations

from typing import Any, Final

from otel_audit.errors import StoreUnavailableError
from otel_audit_postgres.connection import Connection, LockNotAvailableError

PATIENCE: Final = "SET LOCAL lock_timeout = '30s'"

_HOLDERS: Final = """
SELECT l.pid, a.usename, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.locktype = 'advisory' AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint) = $1
"""


async def alone(connection: Connection[Any], key: int, doing: str) -> None:
    """Wait for this advisory lock; the error names its holder.

    Before there is a schema there is no table to lock, and this lock anybody can take.

    Args:
        connection: Within a transaction, which has the lock until it ends.
        key: The lock's number.
        doing: What it is for, in the infinitive.

    Raises:
        StoreUnavailableError: Somebody kept it for longer than 30 seconds.
    """
    await connection.execute(PATIENCE)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", key)
    except LockNotAvailableError:
        holders = await connection.fetch(_HOLDERS, key)
        who = "; ".join(
            f"process {pid} of role {role} (application {application!r}): if it changes no schema, "
            f"end it: SELECT pg_terminate_backend({pid})"
            for pid, role, application in holders
        )
        raise StoreUnavailableError(
            f"could not {doing}: another session holds its lock: {who or 'try again'}"
        ) from None
