"""The review of the store's quarantine: list it, store records after all, or dismiss them.

`sink.py` fills it. Nothing leaves ``audit.quarantine``; what was stored since, or was looked at, is
marked, and the trail tells so.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from otel_audit.config import AuditConfig
from otel_audit.delivery.queue_entries import read_back
from otel_audit.errors import StoreError
from otel_audit.record import AuditRecord
from otel_audit_postgres.connection import InsufficientPrivilegeError
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.personal.protect import protector_from
from otel_audit_postgres.sink import PostgresSink

_LIST = "SELECT content_hash, record_id, received, reason, recorded_at FROM audit.quarantined()"
_RELEASE = "SELECT audit.release_quarantined($1, $2, $3)"


class QuarantinedRow(NamedTuple):
    """A row of the quarantine."""

    content_hash: bytes
    record_id: str
    received: str
    reason: str
    recorded_at: datetime


async def quarantined(dsn: str) -> list[QuarantinedRow]:
    """Read what is in quarantine and was not released, the oldest first.

    Args:
        dsn: The audit store, as its retention role or its owner.

    Raises:
        StoreError: It cannot be read; the message says the remedy.
    """
    async with ledger_queries.opened(dsn, "read audit.quarantine") as connection:
        try:
            return [QuarantinedRow(*row.values()) for row in await connection.fetch(_LIST)]
        except InsufficientPrivilegeError:
            raise StoreError(
                "this role may not read audit.quarantine: name the retention role "
                "(`otel-audit init --roles --retention ROLE`) or the owner with --dsn"
            ) from None


async def release(dsn: str, rows: list[QuarantinedRow], became: str, reason: str) -> None:
    """Mark rows as stored since, or dismissed; the trail records who did it.

    Args:
        dsn: As for `quarantined`.
        rows: Which.
        became: ``stored`` or ``dismissed``.
        reason: Why.

    Raises:
        StoreError: As for `quarantined`.
    """
    async with (
        ledger_queries.opened(dsn, "release rows of audit.quarantine") as connection,
        connection.transaction(),
    ):
        for row in rows:
            await connection.fetchval(_RELEASE, row.content_hash, became, reason)


async def retry(dsn: str, rows: list[QuarantinedRow]) -> list[QuarantinedRow]:
    """Store what is a record, and is taken now.

    Args:
        dsn: The audit store, as a writer.
        rows: Which.

    Returns:
        Those that are in the trail now. The others are not records, or are refused again.

    Raises:
        StoreError: The store takes nothing now.
    """
    done: list[QuarantinedRow] = []
    sink = PostgresSink(dsn, protector=protector_from(AuditConfig()))
    try:
        for row in rows:
            record = read_back(row.record_id, row.received.encode())
            if not isinstance(record, AuditRecord):
                continue
            written = await sink.write([record])
            if written.postponed:
                raise StoreError(written.why_postponed)
            if written.stored:
                done.append(row)
    finally:
        await sink.close()
    return done
