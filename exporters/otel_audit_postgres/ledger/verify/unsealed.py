"""Rows that stand outside the ledger: waiting to be sealed, or put in past it."""

from __future__ import annotations

from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.queued_rows import judge
from otel_audit_postgres.ledger.verify.findings import Findings, ProblemKind

_AT_ONCE: Final = 1000
"""Rows that are fetched by one statement."""


async def check_unsealed(
    connection: Connection[Any], *, sealed: int, matched: int | None, findings: Findings
) -> int:
    """Check the waiting rows, and find rows that neither wait nor were sealed.

    Args:
        connection: Within the verification's transaction.
        sealed: Leaves in the log.
        matched: Leaves whose row is there; None if not all of them were looked up.
        findings: Where problems are noted.

    Returns:
        How many rows wait to be sealed.
    """
    waiting = present = 0
    after = 0
    while queued := await ledger_queries.queued(connection, _AT_ONCE, after):
        waiting += len(queued)
        after = queued[-1].position
        present += await _check_queued(connection, queued, findings)
    rows = await ledger_queries.row_count(connection)
    if matched is not None:
        if rows > matched + present:
            await _name_unqueued_rows(connection, findings)
    elif rows != sealed + waiting:
        findings.add(
            ProblemKind.INSERTED if rows > sealed + waiting else ProblemKind.DELETED,
            f"{rows} rows are stored, {sealed + waiting} were sealed or wait: "
            "verify with --full to name them",
        )
    return waiting


async def _check_queued(
    connection: Connection[Any], queued: list[ledger_queries.Queued], findings: Findings
) -> int:
    judged = await judge(connection, queued)
    for record_id in judged.deleted:
        findings.add(ProblemKind.DELETED, "the row was deleted before it was sealed", record_id)
    for record_id in judged.changed:
        findings.add(ProblemKind.CHANGED, "the row was changed before it was sealed", record_id)
    for row in judged.malformed:
        findings.add_malformed(row)
    return len(queued) - len(judged.deleted)


async def _name_unqueued_rows(connection: Connection[Any], findings: Findings) -> None:
    """Find the rows that no leaf and no place in the queue knows."""
    known: set[bytes] = set()
    async for block in ledger_queries.blocks(connection):
        known.update(record_id.bytes for record_id in block.row_ids())
    async for record_id, tenant_queued, times in ledger_queries.stored_ids(connection):
        if record_id.bytes not in known and not tenant_queued:
            findings.add(
                ProblemKind.INSERTED, "the row was never queued for sealing", str(record_id)
            )
        elif times > 1:
            findings.add(ProblemKind.INSERTED, "a second row has this id", str(record_id))
