"""Changes that belong to no record yet: made outside any action, or after theirs was told."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from otel_audit._util.ids import uuid7
from otel_audit._util.record_limit import without_exchange
from otel_audit._util.spill import SpilledChanges
from otel_audit.action.parts import ACTOR_FAILED, Parts
from otel_audit.record import (
    SCHEMA_VERSION,
    Actor,
    AuditRecord,
    Change,
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
    outcome: TransactionOutcome,
    changes: SpilledChanges,
    service: Callable[[], str],
    parts: Parts,
    begun_in: str | None = None,
) -> tuple[AuditRecord, SpilledChanges]:
    """Make the record of a transaction that no action contained: a script, a worker, a start-up.

    That there was one, and how many rows it changed, cannot fail; each other part fails for itself.

    Args:
        outcome: What became of the transaction.
        changes: What it changed.
        service: Gives the process's service name, which stands in for the actor.
        parts: Takes note of what could not be described.
        begun_in: Id of the action that began the task which has written, and which is over.

    Returns:
        A record named ``database.changed``, by an actor of type ``system``, and the changes that
        are too many for it.
    """
    record_id = uuid7()
    total = changes.count
    first, further = _first_of(changes, parts)
    operations = {change.operation for change in first}
    action = _ACTIONS.get(operations.pop(), "EXECUTE") if len(operations) == 1 else "EXECUTE"
    try:
        actor = Actor(id=service(), type="system", source="process")
    except Exception as error:  # noqa: BLE001 - it costs the actor alone
        parts.fail("actor", error)
        actor = ACTOR_FAILED
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
        actor=actor,
        changes=tuple(first),
        changes_total=total if total != len(first) else None,
        transaction=outcome,
        level="changes",
        metadata=parts.named({} if begun_in is None else {BEGUN_IN: begun_in}),
    )
    return record, further


def record_afterwards(
    told: AuditRecord,
    scope: AuditScope,
    outcome: TransactionOutcome,
    changes: SpilledChanges,
    parts: Parts,
) -> tuple[AuditRecord, SpilledChanges]:
    """Make the record of a transaction that ended after its action's record was told.

    Args:
        told: That record.
        scope: The action.
        outcome: What became of the transaction.
        changes: What it changed, as far as it is kept.
        parts: Takes note of what could not be described.

    Returns:
        A record of phase ``changes`` with the same action id, and without the bodies; and the
        changes that are too many for it.
    """
    total = changes.count
    first, further = _first_of(changes, parts)
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
        metadata=parts.named(told.metadata),
    )
    return record, further


def _first_of(changes: SpilledChanges, parts: Parts) -> tuple[list[Change], SpilledChanges]:
    """Take the changes of the first record out; none where they cannot be read."""
    try:
        return changes.split(changes.room.page)
    except Exception as error:  # noqa: BLE001 - how many there were is known all the same
        parts.fail("changes", error)
        return [], SpilledChanges(changes.room)
