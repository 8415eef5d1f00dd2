"""Changes that are too many for one record: further records of the same action."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from otel_audit._util.ids import uuid7
from otel_audit._util.record_limit import without_exchange
from otel_audit._util.spill import SpilledChanges
from otel_audit.record import TRUNCATED, AuditRecord
from otel_audit.scope import AuditScope

if TYPE_CHECKING:
    from otel_audit.redaction import Redactor

PART = "audit.part"
"""Which of the records of one set of changes this is; the record that they continue is 1."""


TOLD = "audit.changes.records"
"""Ids of the records in which an action's own transactions tell what they have changed."""

RETRIED = "audit.retried"
"""How many transactions were rolled back before the one that was committed in the end."""

ROLLED_BACK = "audit.rolled_back"
"""What was rolled back, or refused, beside it: how many of each, such as ``insert seat``."""

_MOST_NAMED = 100


def with_continuations(
    record: AuditRecord, further: SpilledChanges | None
) -> Iterator[AuditRecord]:
    """Give a record, and after it one of phase ``continued`` for each page of further changes.

    Each has an id of its own, the same action id, and the same total of changes.

    Args:
        record: The record, with the first changes; without any, further ones are not wanted.
        further: The changes after those.
    """
    yield record
    if further is None or not record.changes:
        return
    bare = without_exchange(record)
    for number, part in enumerate(further.parts(), 2):
        metadata: dict[str, Any] = {**record.metadata, PART: number}
        yield msgspec.structs.replace(
            bare,
            record_id=uuid7(),
            phase="continued",
            changes=tuple(part),
            metadata=metadata,
        )


def with_told(metadata: dict[str, Any], scope: AuditScope) -> dict[str, Any]:
    """Add what the record itself does not tell: where changes are told, retries, what was cut."""
    if scope.rolled_back_transactions and scope.is_retried:
        metadata = {
            **metadata,
            RETRIED: scope.rolled_back_transactions,
            ROLLED_BACK: dict(scope.rolled_back),
        }
    if scope.told:
        metadata = {**metadata, TOLD: scope.told[:_MOST_NAMED]}
    cut = scope.budget.cut
    return {**metadata, TRUNCATED: cut} if cut else metadata


def described_metadata(scope: AuditScope, redactor: Redactor) -> dict[str, Any]:
    """Redact what the application has added to an action, as it is now, within its budget."""
    if not scope.metadata:
        return {}
    try:
        # a copy: another task may add to it in the meantime
        given = dict(scope.metadata)
    except RuntimeError:
        given = {}
        scope.budget.note_cut("metadata")
    found = redactor.document(given, scope.budget.metadata())
    # what could not be read at all is one word
    return found if isinstance(found, dict) else {"audit.metadata": found}
