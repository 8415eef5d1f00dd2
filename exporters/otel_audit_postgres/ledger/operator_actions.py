"""Commands that only a person may give: an anchor is new, the log was moved to another database."""

from __future__ import annotations

from otel_audit.errors import StoreError
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.anchors import Anchor
from otel_audit_postgres.ledger.checkpoints import read_checkpoint
from otel_audit_postgres.ledger.publish_anchors import begin_anchor


async def begin(dsn: str, anchor: Anchor) -> int:
    """Publish a log's last checkpoint to an anchor that holds none.

    Args:
        dsn: The audit store, as a role that may read the ledger.
        anchor: The anchor.

    Returns:
        Leaves under the checkpoint that was published; 0 where nothing is sealed, and none was.

    Raises:
        StoreError: The store cannot be read.
        OtelAuditError: The anchor holds a checkpoint, or does not take one.
    """
    async with ledger_queries.opened(dsn, "read the ledger", asks=True) as connection:
        note = await ledger_queries.last_note(connection)
    if note is None:
        return 0
    await begin_anchor(anchor, note)
    return read_checkpoint(note).size


async def move_here(dsn: str) -> str:
    """Say that the log belongs to this database from now on.

    Args:
        dsn: The audit store, as a role that may seal.

    Returns:
        Which database that is.

    Raises:
        StoreError: The role lacks the right, or the server does not give its identity.
    """
    async with ledger_queries.opened(dsn, "move the ledger") as connection:
        await ledger_queries.move_here(connection)
        place = await ledger_queries.place(connection)
    if place.here is None:
        raise StoreError(
            "this server does not show its system identifier (pg_control_system), so the log "
            "belongs to no server in particular: there is nothing to say"
        )
    return place.here
