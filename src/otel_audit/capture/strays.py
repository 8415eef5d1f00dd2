"""Changes that belong to no record yet: made outside any action, or after theirs was told."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from otel_audit.aside import Pages
from otel_audit.fitting import without_exchange
from otel_audit.ids import uuid7
from otel_audit.record import (
    SCHEMA_VERSION,
    Actor,
    AuditRecord,
    Outcome,
    TransactionOutcome,
)
from otel_audit.scope import AuditScope

BEGUN_IN = "audit.begun_in"
"""Id of the action that began the task which has written: it was over, so this is not its own."""

Emit = Callable[[AuditRecord], None]

_ACTIONS = {"insert": "CREATE", "update": "UPDATE", "delete": "DELETE"}
_OUTCOMES: dict[TransactionOutcome, Outcome] = {"committed": "success", "unknown": "unknown"}


def record_outside(
    outcome: TransactionOutcome, changes: Pages, service: str, begun_in: str | None = None
) -> tuple[AuditRecord, Pages]:
    """Make the record of a transaction that no action contained: a script, a worker, a start-up.

    Args:
        outcome: What became of the transaction.
        changes: What it changed.
        service: The process's service name, which stands in for the actor.
        begun_in: Id of the action that began the task which has written, and which is over.

    Returns:
        A record named ``database.changed``, by an actor of type ``system``, and the changes that
        are too many for it.
    """
    record_id = uuid7()
    total = changes.count
    first, further = changes.split(changes.room.page)
    operations = {change.operation for change in first}
    action = _ACTIONS[operations.pop()] if len(operations) == 1 else "EXECUTE"
    record = AuditRecord(
        record_id=record_id,
        action_id=record_id,
        parent_action_id=begun_in,
        phase="completed",
        schema_version=SCHEMA_VERSION,
        event_name="database.changed",
        action=action,
        outcome=_OUTCOMES.get(outcome, "failure"),
        occurred_at=time.time_ns(),
        actor=Actor(id=service, type="system", source="process"),
        changes=tuple(first),
        changes_total=total if total != len(first) else None,
        transaction=outcome,
        level="changes",
        metadata={} if begun_in is None else {BEGUN_IN: begun_in},
    )
    return record, further


def record_afterwards(
    told: AuditRecord, scope: AuditScope, outcome: TransactionOutcome, changes: Pages
) -> tuple[AuditRecord, Pages]:
    """Make the record of a transaction that ended after its action's record was told.

    Args:
        told: That record.
        scope: The action.
        outcome: What became of the transaction.
        changes: What it changed, as far as it is kept.

    Returns:
        A record of phase ``changes`` with the same action id, and without the bodies; and the
        changes that are too many for it.
    """
    total = changes.count
    first, further = changes.split(changes.room.page)
    record = msgspec.structs.replace(
        without_exchange(told),
        record_id=uuid7(),
        phase="changes",
        outcome=_OUTCOMES.get(outcome, "failure"),
        occurred_at=time.time_ns(),
        duration=0,
        changes=tuple(first),
        changes_total=total if total != len(first) else None,
        changes_rolled_back=scope.changes_rolled_back,
        transaction=outcome,
    )
    return record, further
