"""Actions that take long: a record says that they have started, so that none runs unseen."""

from __future__ import annotations

import time

import msgspec

from otel_audit.ids import uuid7
from otel_audit.record import AuditRecord


def record_started(known: AuditRecord) -> AuditRecord:
    """Make the record of an action that still runs.

    Args:
        known: What its record would be by now.

    Returns:
        A record of phase ``started`` with an id of its own and the same action id. Changes are
        left to the record at the end, which knows what became of them.
    """
    return msgspec.structs.replace(
        known,
        record_id=uuid7(),
        phase="started",
        outcome="unknown",
        duration=time.time_ns() - known.occurred_at,
        changes=(),
        changes_total=None,
        changes_rolled_back=0,
        transaction="none",
    )
