"""Rows that wait to be sealed: what each is, compared with what it was when it was inserted."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.malformed import Flaw, Malformed
from otel_audit_postgres.ledger.row_check import altered_columns, is_no_record, leaf_of

_FIRST_PART: Final = 8
"""Places that are judged before it is known how large the rows are."""


@dataclass(slots=True)
class QueuedRows:
    """Checked rows of the queue, each kind in the order of the queue.

    Attributes:
        deleted: Ids of rows that are gone.
        changed: Ids of rows that are not what they were.
        malformed: Rows that are what they were, and never were well-formed.
        flaws: The same, as the sealer signs it.
    """

    deleted: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)


async def judge(connection: Connection[Any], queued: Sequence[ledger_queries.Queued]) -> QueuedRows:
    """Read the rows of these places in the queue, and compare.

    Args:
        connection: To the store.
        queued: The places.
    """
    found, _ = await judge_first(connection, queued, sys.maxsize)
    return found


async def judge_first(
    connection: Connection[Any], queued: Sequence[ledger_queries.Queued], most_bytes: int
) -> tuple[QueuedRows, int]:
    """Read the rows of the first places in the queue, and compare.

    Args:
        connection: To the store.
        queued: The places, at least one.
        most_bytes: Of rows; at least one place is judged.

    Returns:
        What was found, and of how many places.
    """
    found, count = QueuedRows(), 0
    part, read = _FIRST_PART, 0
    while count < len(queued) and read < most_bytes:
        judged = queued[count : count + part]
        read += await _judge(connection, judged, found)
        count += len(judged)
        # as many more as are likely to fit; one after another where they are huge
        each = max(read / count, 1.0)
        part = max(int((most_bytes - read) / each), 1)
    return found, count


async def _judge(
    connection: Connection[Any], queued: Sequence[ledger_queries.Queued], found: QueuedRows
) -> int:
    """Add what these are; returns how many bytes were read."""
    places = {(entry.leaf.id, entry.tenant_id): entry for entry in queued}
    present: set[tuple[bytes, str]] = set()
    suspects: list[tuple[ledger_queries.Queued, Malformed]] = []
    read = 0
    # judged as they come, so that large rows are not all held at once
    async for row in ledger_queries.rows(
        connection, [uuid.UUID(bytes=record) for record, _ in places]
    ):
        key = row["id"].bytes, row["tenant_id"]
        entry = places.get(key)
        if entry is None:
            continue
        present.add(key)
        read += len(row["payload"] or "")
        columns = altered_columns(row)
        if leaf_of(row) != entry.leaf:
            found.changed.append(str(row["id"]))
        elif columns:
            suspects.append((entry, _malformed(row, columns)))
    found.deleted += [str(uuid.UUID(bytes=key[0])) for key in places if key not in present]
    if not suspects:
        return read
    ids = [uuid.UUID(bytes=entry.leaf.id) for entry, _ in suspects]
    hashes = await ledger_queries.column_hashes(connection, ids)
    for entry, malformed in suspects:
        now = hashes.get((entry.leaf.id, entry.tenant_id))
        if now is not None and now == entry.columns_hash:
            found.malformed.append(malformed)
            found.flaws.append((entry.leaf.id, now))
        else:
            found.changed.append(malformed.record_id)
    return read


def _malformed(row: Mapping[str, Any], columns: Sequence[str]) -> Malformed:
    if is_no_record(row):
        what = "the payload is not a record"
    else:
        what = f"columns that do not follow from the payload: {', '.join(columns)}"
    return Malformed(what, str(row["id"]), producer=row["producer_id"])
