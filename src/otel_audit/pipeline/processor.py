"""Takes the record out of each audit span as it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

from otel_audit.attributes import is_flagged, record_from_span
from otel_audit.complaints import complain
from otel_audit.pipeline.counters import Counters
from otel_audit.record import AuditRecord

_logger = logging.getLogger(__name__)


class AuditSpanProcessor(SpanProcessor):
    """Hands the record of every flagged span to delivery, in the thread that ends the span."""

    def __init__(self, deliver: Callable[[AuditRecord], None], counters: Counters) -> None:
        """Name where records go.

        Args:
            deliver: Takes a record in microseconds and keeps it; must not raise.
            counters: Where a span that cannot be read is counted.
        """
        self._deliver = deliver
        self._counters = counters
        self._known: dict[int, AuditRecord] = {}

    def expect(self, span_id: int, record: AuditRecord) -> None:
        """Say beforehand which record a span of ours carries, so that it need not be read back.

        Args:
            span_id: The span that will end in this very process.
            record: What `record_from_span` would read.
        """
        self._known[span_id] = record

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing: a record is complete only when its span ends."""

    def on_end(self, span: ReadableSpan) -> None:
        """Deliver the record, if the span carries one. Never raises."""
        context = span.get_span_context()
        known = None if context is None else self._known.pop(context.span_id, None)
        if known is not None:
            self._deliver(known)
            return
        if not is_flagged(span):
            return
        try:
            record = record_from_span(span)
        except Exception as error:  # noqa: BLE001 - an exception here would reach the application
            self._counters.add("dropped")
            complain(
                _logger, "unreadable span", "An audit span cannot be read; its record is lost",
                error=error,
            )  # fmt: skip
            return
        self._deliver(record)
