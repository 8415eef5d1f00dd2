"""Records that came under the id of another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from otel_audit._util.ids import conflict_id
from otel_audit.action.compose import stored_as, without_receiver
from otel_audit.delivery.sink import Refused
from otel_audit_postgres.batch_result import refusal_of
from otel_audit_postgres.rows import Row, UnstorableRecordError, record_from_payload, to_row


def came_directly(row: Row, stored: set[tuple[Any, bytes]]) -> bool:
    """Return whether the store has a received record already from the application itself."""
    if row.received_hash is None:
        return False
    unmarked = without_receiver(record_from_payload(row.payload))
    return (row.id, to_row(unmarked).content_hash) in stored


def moved_rows(
    rows: Iterable[Row], claim: int, refused: list[Refused]
) -> tuple[list[Row], list[Row]]:
    """Give records other ids; one that no row can hold is refused, and holds up no other.

    Returns:
        Those that have one, as they came, and the rows that were made of them.
    """
    came: list[Row] = []
    moved: list[Row] = []
    for row in rows:
        try:
            moved.append(_moved(row, claim))
        except UnstorableRecordError as error:
            refused.append(refusal_of(row, error.reason))
        else:
            came.append(row)
    return came, moved


def _moved(row: Row, claim: int) -> Row:
    """Give a record another id: by what was received where it was, for redaction may change."""
    content = row.content_hash if row.received_hash is None else row.received_hash
    record_id = conflict_id(row.record_id, content.hex(), str(claim))
    return to_row(stored_as(row.record, record_id, str(row.id)))
