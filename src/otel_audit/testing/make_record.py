"""Records made by hand, for tests of what reads them."""

from __future__ import annotations

from typing import Any, Final

from otel_audit._util.ids import uuid7
from otel_audit.record import SCHEMA_VERSION, Actor, AuditRecord, Target, Tenant

_WHEN: Final = 1_790_000_000_123_456_789
"""Nanoseconds: a time in September 2026, the same in each run."""


def make_record(event: str = "order.created", /, **fields: Any) -> AuditRecord:
    """Make one plain record.

    Args:
        event: The event's name.
        fields: Fields of `AuditRecord` that are to differ; ``actor``, ``tenant`` and ``target``
            may be text: ``actor="clerk-1"``, ``target="order:1"``.

    Raises:
        TypeError: Records have no such field.

    Example::

        record = make_record("order.paid", actor="clerk-1", target="order:1")
        assert record.target.id == "1"
    """
    actor, tenant, target = (fields.pop(name, None) for name in ("actor", "tenant", "target"))
    if actor is None or isinstance(actor, str):
        actor = Actor(id=actor or "user-1", type="user", verified=True, source="app")
    if isinstance(tenant, str):
        tenant = Tenant(id=tenant)
    if isinstance(target, str):
        kind, _, key = target.partition(":")
        target = Target(type=kind, id=key or None)
    occurred_at = fields.get("occurred_at", _WHEN)
    record_id = fields.pop("record_id", None) or uuid7(occurred_at)
    plain: dict[str, Any] = {
        "action_id": record_id,
        "phase": "completed",
        "schema_version": SCHEMA_VERSION,
        "action": "CREATE",
        "outcome": "success",
        "occurred_at": occurred_at,
        "duration": 12_345_678,
        "transaction": "committed",
        "level": "request_response",
        **fields,
    }
    return AuditRecord(
        record_id=record_id, event_name=event, actor=actor, tenant=tenant, target=target, **plain
    )
