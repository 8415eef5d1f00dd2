"""All matching records, a batch at a time, for files."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.query import queries
from otel_audit_postgres.query.conditions import conditions_of
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.pagination import Order, selected, walk

CSV_COLUMNS: Final = (
    "id", "occurred_at", "recorded_at", "tenant_id", "event_name", "action", "outcome",
    "transaction_outcome", "actor_id", "actor_type", "actor_role", "target_type", "target_id",
    "status_code", "http_method", "http_route", "url_path", "source_address", "session_id",
    "request_id", "trace_id", "error_type", "service_name", "content_hash",
)  # fmt: skip
_BATCH: Final = 1_000
"""Rows of one question: memory is bounded, however many there are."""
_RECORD: Final = "SELECT audit.record_export($1::jsonb, $2)"


_COLUMNS: Final = (
    f"SELECT {selected(CSV_COLUMNS)} FROM audit.audit_logs "  # noqa: S608 - constants
    "WHERE id = ANY($1::uuid[]) ORDER BY id DESC, tenant_id DESC"
)
_TEXTS: Final = (
    "SELECT id, tenant_id, payload FROM audit.audit_logs "
    "WHERE id = ANY($1::uuid[]) ORDER BY id DESC, tenant_id DESC"
)


async def record_export(
    connection: Connection[Any], asked: Mapping[str, str], viewer: str | None
) -> uuid.UUID:
    """Record an export, before it begins; the id of that record."""
    found: uuid.UUID = await connection.fetchval(_RECORD, json.dumps(dict(asked)), viewer)
    return found


async def batches(
    connection: Connection[Any], query: Query, *, texts: bool
) -> AsyncIterator[list[Mapping[str, Any]]]:
    """Read what is found, the newest first.

    Args:
        connection: To the store, within one transaction of repeatable reads.
        query: What is looked for.
        texts: Rows of ``payload``, the exact texts; else of `CSV_COLUMNS`.

    Yields:
        Some rows at a time, none of them empty.
    """
    query, _ = await queries.resolved(connection, query)
    asked = conditions_of(query, datetime.now(UTC))
    read = _looked_up if asked.payload or asked.entity else _walked
    async for rows in read(connection, query, texts=texts):
        yield rows


async def _walked(
    connection: Connection[Any], query: Query, *, texts: bool
) -> AsyncIterator[list[Mapping[str, Any]]]:
    """Read all matching rows when all conditions are on columns."""
    now = datetime.now(UTC)
    names = ("id", "tenant_id", "occurred_at") if texts else CSV_COLUMNS
    rows: list[Mapping[str, Any]] = []
    while not rows or len(rows) == _BATCH:
        asked = conditions_of(query, now)
        if rows:
            asked.columns.append(Order().beyond(asked, rows[-1]["id"], rows[-1]["tenant_id"]))
        sql = walk(asked, names, f"{Order()} LIMIT {_BATCH}", payloads=texts)
        rows = await connection.fetch(sql, *asked.values)
        if not rows:
            return
        yield rows


async def _looked_up(
    connection: Connection[Any], query: Query, *, texts: bool
) -> AsyncIterator[list[Mapping[str, Any]]]:
    """Read what is found otherwise: which ones first, then all of these."""
    after: str | None = None
    while True:
        page = await queries.search(connection, query, limit=_BATCH, after=after)
        wanted = {(one.id, one.tenant_id) for one in page.records}
        if wanted:
            ids = [record_id for record_id, _ in wanted]
            rows = await connection.fetch(_TEXTS if texts else _COLUMNS, ids)
            yield [row for row in rows if (row["id"], row["tenant_id"]) in wanted]
        if page.next is None:
            return
        after = page.next
