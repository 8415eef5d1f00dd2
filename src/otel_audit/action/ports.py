"""What the capture of actions needs of the other parts."""

from __future__ import annotations

from typing import Protocol

from opentelemetry import trace

from otel_audit.record import AuditRecord


class Recorder(Protocol):
    """Takes what is known of an action; keeps it in microseconds and never raises."""

    def opened(self, record: AuditRecord, server_span: trace.Span | None, /) -> bool:
        """An action has begun; False where it must be refused, as it could not be recorded."""

    def answered(self, record: AuditRecord, server_span: trace.Span | None, /) -> None:
        """The client is about to see the end of its answer."""

    def discarded(self, record_id: str, /) -> None:
        """What was opened is not recorded after all."""

    def closed(self, record: AuditRecord, server_span: trace.Span | None, /) -> None:
        """The action is over and its record is true."""
