"""CloudEvents 1.0 (JSON format): the record is the data."""

from __future__ import annotations

from typing import Any, Final

from otel_audit.shapes.event import Event
from otel_audit.shapes.times import rfc3339

TYPE_PREFIX: Final = "io.otel-audit."


def to_cloudevent(event: Event) -> dict[str, Any]:
    """Show an event as a CloudEvent.

    ``id`` is the record's; extensions say its place in the ledger.

    Args:
        event: An event of ours.

    Raises:
        UnshapeableError: The payload is not a record of ours.
    """
    record = event.typed()
    target = record.target
    found: dict[str, Any] = {
        "specversion": "1.0",
        "id": record.record_id,
        "source": f"//{event.log or 'otel-audit'}",
        "type": TYPE_PREFIX + (record.event_name or "unnamed"),
        "time": rfc3339(record.occurred_at),
        "datacontenttype": "application/json",
        "auditoutcome": record.outcome,
        "audithash": event.content_hash,
        "data": event.document,
    }
    if target is not None:
        found["subject"] = target.type if target.id is None else f"{target.type}:{target.id}"
    if event.leaf is not None:
        # an extension's integer has 32 bits
        found["sequence"] = f"{event.leaf:020d}"
    if event.log:
        found["auditlog"] = event.log
    if record.tenant is not None:
        found["audittenant"] = record.tenant.id
    if record.trace_id and record.span_id:
        flags = "01" if record.trace_sampled else "00"
        found["traceparent"] = f"00-{record.trace_id}-{record.span_id}-{flags}"
    if not event.is_as_sealed:
        found["auditaltered"] = True
    return {name: value for name, value in found.items() if value != ""}
