"""Changes that belong to no record yet: made outside any action, or after theirs was told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from otel_audit.ids import uuid7
from otel_audit.record import (
    SCHEMA_VERSION,
    Actor,
    AuditRecord,
    Change,
    Outcome,
    TransactionOutcome,
)
from otel_audit.scope import AuditScope

Emit = Callable[[AuditRecord], None]

_ACTIONS = {"insert": "CREATE", "update": "UPDATE", "delete": "DELETE"}
_OUTCOMES: dict[TransactionOutcome, Outcome] = {"committed": "success", "unknown": "unknown"}


def record_outside(
    outcome: TransactionOutcome, changes: Sequence[Change], service: str
) -> AuditRecord:
    """Make the record of a transaction that no action contained: a script, a worker, a start-up.

    Args:
        outcome: What became of the transaction.
        changes: What it changed.
        service: The process's service name, which stands in for the actor.

    Returns:
        A record named ``database.changed``, by an actor of type ``system``.
    """
    record_id = uuid7()
    operations = {change.operation for change in changes}
    action = _ACTIONS[operations.pop()] if len(operations) == 1 else "EXECUTE"
    return AuditRecord(
        record_id=record_id,
        action_id=record_id,
        phase="completed",
        schema_version=SCHEMA_VERSION,
        event_name="database.changed",
        action=action,
        outcome=_OUTCOMES.get(outcome, "failure"),
        occurred_at=time.time_ns(),
        actor=Actor(id=service, type="system", source="process"),
        changes=tuple(changes),
        transaction=outcome,
        level="changes",
    )


def record_afterwards(
    told: AuditRecord, scope: AuditScope, outcome: TransactionOutcome, changes: Sequence[Change]
) -> AuditRecord:
    """Make the record of a transaction that ended after its action's record was told.

    Args:
        told: That record.
        scope: The action.
        outcome: What became of the transaction.
        changes: What it changed, as far as it is kept.

    Returns:
        A record of phase ``changes`` with the same action id, and without the bodies.
    """
    request = told.request
    return msgspec.structs.replace(
        told,
        record_id=uuid7(),
        phase="changes",
        outcome=_OUTCOMES.get(outcome, "failure"),
        occurred_at=time.time_ns(),
        duration=0,
        request=None if request is None else msgspec.structs.replace(request, body=None),
        response=None,
        changes=tuple(changes),
        changes_total=None,
        changes_rolled_back=scope.changes_rolled_back,
        transaction=outcome,
    )
