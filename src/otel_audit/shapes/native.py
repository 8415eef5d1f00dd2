"""The native format: the stored record, and its place in the ledger."""

from __future__ import annotations

from typing import Any

from otel_audit.shapes.event import Event


def to_native(event: Event) -> dict[str, Any]:
    """Show an event in our own shape.

    Args:
        event: Any event, also one whose payload is not a record of ours.
    """
    return {
        "id": event.id,
        "leaf": event.leaf,
        "log": event.log,
        "content_hash": event.content_hash,
        **({} if event.is_as_sealed else {"is_as_sealed": False}),
        "record": event.document,
    }
