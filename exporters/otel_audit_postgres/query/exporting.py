"""All that a query finds, a batch at a time, for files."""

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
from otel_audit_postgres.query.pagination import Order, walk, within

CSV_COLUMNS: Final = (
    "id", "occurred_at", "recorded_at", "tenant_id", "event_name", "action", "outcome",
    "transaction_outcome", "actor_id", "actor_type", "actor_role", "target_type", "target_id",
    "status_code", "http_method", "http_route", "url_path", "source_address", "session_id",
    "request_id", "trace_id", "error_type", "service_name", "content_hash",
)  # fmt: skip
_BATCH: Final = 4_000
_KEY: Final = ("id", "tenant_id", "occurred_at")
_RECORD: Final = "SELECT audit.record_export($1::jsonb, $2)"
_OWN: Final = 3
"""Columns of a batch that are not for the file: the record's place, and whether it fits."""


def csv_selection(table: str) -> str:
    """The columns of a file in CSV, as a list of SELECT."""
    found = []
    for name in CSV_COLUMNS:
        column = f"{table}.{name}"
        if name in {"occurred_at", "recorded_at"}:
            column = within(column)
        elif name == "content_hash":
            column = f"encode({column}, 'hex')"
        found.append(f"{column} AS {name}")
    return ", ".join(found)


async def record_export(
    connection: Connection[Any], asked: Mapping[str, str], viewer: str | None
) -> uuid.UUID:
    """Record an export, before it begins."""
    found: uuid.UUID = await connection.fetchval(_RECORD, json.dumps(dict(asked)), viewer)
    return found


async def batches(
    connection: Connection[Any], query: Query, *, texts: bool
) -> AsyncIterator[list[Any]]:
    """Read what is found, the newest first.

    Args:
        connection: To the store, within one transaction of repeatable reads.
        query: What is looked for.
        texts: The records' exact texts; else tuples of `CSV_COLUMNS`.

    Yields:
        Some rows at a time, none of them empty.
    """
    query, _ = await queries.resolved(connection, query)
    now, order = datetime.now(UTC), Order()
    after: tuple[uuid.UUID, str] | None = None
    while True:
        asked = conditions_of(query, now)
        if after is not None:
            asked.columns.append(order.beyond(asked, *after))
        window = walk(asked, _KEY, f"{order} LIMIT {_BATCH}")
        fits = " AND ".join(asked.payload) or "true"
        chosen = f"CASE WHEN {fits} THEN l.payload::text END" if texts else csv_selection("l")
        # of a record that does not fit, only its place
        sql = (
            f"SELECT l.id AS own_id, l.tenant_id AS own_tenant, {fits} AS fits, {chosen} "  # noqa: S608
            f"FROM ({window}) AS found JOIN audit.audit_logs AS l USING (id, tenant_id) "
            "ORDER BY l.id DESC, l.tenant_id DESC"
        )
        rows = await connection.fetch(sql, *asked.values)
        if fitting := [tuple(row)[_OWN:] for row in rows if row["fits"]]:
            yield [text for (text,) in fitting] if texts else fitting
        if len(rows) < _BATCH:
            return
        after = rows[-1]["own_id"], rows[-1]["own_tenant"]
