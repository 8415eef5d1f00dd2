"""Numbers the finished records of this process and sends each on its way as an audit span."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

import msgspec
from opentelemetry import trace
from opentelemetry.trace import format_span_id, format_trace_id

from otel_audit.complaints import complain
from otel_audit.ids import uuid7
from otel_audit.pipeline.counters import Counters
from otel_audit.pipeline.delivery import Delivery
from otel_audit.pipeline.processor import AuditSpanProcessor
from otel_audit.pipeline.provider import (
    application_resource,
    make_audit_tracer,
    resource_attributes,
    trace_record,
)
from otel_audit.pipeline.spool import Kind, SpoolFullError
from otel_audit.record import AuditRecord

_logger = logging.getLogger(__name__)

Expect = Callable[[int, AuditRecord], None]


class SpanRecorder:
    """One producer: a numbered stream of records, from 1, each carried by an audit span.

    A forked child is a producer of its own. The tracer is made with the first record, when the
    application has long set up its tracing, so that both have the same resource.
    """

    def __init__(self, delivery: Delivery, counters: Counters, *, refuse_when_full: bool) -> None:
        """Name where records go.

        Args:
            delivery: Takes what is known of actions, and finished records, in microseconds each.
            counters: Where a span that cannot be read is counted.
            refuse_when_full: Whether an action shall be refused that the spool has no room for.
        """
        self._delivery = delivery
        self._counters = counters
        self._refuse_when_full = refuse_when_full
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.producer_id = uuid7()
        self._last = 0
        self._making: tuple[trace.Tracer, Expect] | None = None

    def opened(self, record: AuditRecord, server_span: trace.Span | None) -> bool:
        """Write down that an action has begun.

        Returns:
            Whether it may go on; False where it could not be recorded and so must be refused.
        """
        try:
            self._delivery.note(Kind.OPENED, self._placed(record, server_span))
        except SpoolFullError as error:
            complain(_logger, "full", "The audit spool is full: %s", error, level=logging.CRITICAL)
            if self._refuse_when_full:
                self._counters.add("refused")
                return False
        return True

    def answered(self, record: AuditRecord, server_span: trace.Span | None) -> None:
        """Write down all that is known before the client sees the end of its answer."""
        self._delivery.note(Kind.ANSWERED, self._placed(record, server_span))

    def discarded(self, record_id: str) -> None:
        """Take back what was opened: the action is not recorded after all."""
        self._delivery.discard(record_id)

    def closed(self, record: AuditRecord, server_span: trace.Span | None) -> None:
        """Number a finished record and hand it over.

        Args:
            record: The record, complete but for its place in the stream and in a trace.
            server_span: The application's own span of the action, if any.
        """
        if self._pid != os.getpid():
            self._begin()
        tracer, expect, number = self._next()
        record = self._placed(record, server_span, number)
        try:
            if trace_record(tracer, record, server_span, expect):
                return
        except Exception as error:  # noqa: BLE001 - a record that no span can carry goes without
            complain(_logger, "span", "An audit record goes without its span", error=error)
        self._delivery.submit(record)

    def _placed(
        self, record: AuditRecord, server_span: trace.Span | None, number: int | None = None
    ) -> AuditRecord:
        if self._pid != os.getpid():
            self._begin()
        context = None if server_span is None else server_span.get_span_context()
        return msgspec.structs.replace(
            record,
            producer_id=self.producer_id,
            sequence_number=number,
            trace_id=None if context is None else format_trace_id(context.trace_id),
            span_id=None if context is None else format_span_id(context.span_id),
            trace_sampled=None if context is None else context.trace_flags.sampled,
            resource=resource_attributes(),
        )

    def _next(self) -> tuple[trace.Tracer, Expect, int]:
        with self._lock:
            self._last += 1
            if self._making is None:
                processor = AuditSpanProcessor(self._delivery.submit, self._counters)
                tracer = make_audit_tracer(application_resource(), processor)
                self._making = tracer, processor.expect
            return *self._making, self._last
