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
from otel_audit.pipeline.processor import AuditSpanProcessor
from otel_audit.pipeline.provider import application_resource, make_audit_tracer, trace_record
from otel_audit.record import AuditRecord

_logger = logging.getLogger(__name__)


class SpanRecorder:
    """One producer: a numbered stream of records, from 1, each carried by an audit span.

    A forked child is a producer of its own. The tracer is made with the first record, when the
    application has long set up its tracing, so that both have the same resource.
    """

    def __init__(self, deliver: Callable[[AuditRecord], None], counters: Counters) -> None:
        """Name where records go.

        Args:
            deliver: Takes a record in microseconds; must not raise.
            counters: Where a span that cannot be read is counted.
        """
        self._deliver = deliver
        self._counters = counters
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.producer_id = uuid7()
        self._last = 0
        self._tracer: trace.Tracer | None = None

    def closed(self, record: AuditRecord, server_span: trace.Span | None) -> None:
        """Number a finished record and hand it over.

        Args:
            record: The record, complete but for its place in the stream and in a trace.
            server_span: The application's own span of the action, if any.
        """
        if self._pid != os.getpid():
            self._begin()
        tracer, number = self._next()
        context = None if server_span is None else server_span.get_span_context()
        record = msgspec.structs.replace(
            record,
            producer_id=self.producer_id,
            sequence_number=number,
            trace_sampled=None if context is None else context.trace_flags.sampled,
        )
        try:
            if trace_record(tracer, record, server_span):
                return
        except Exception as error:  # noqa: BLE001 - a record that no span can carry goes without
            complain(_logger, "span", "An audit record goes without its span", error=error)
        self._deliver(_without_span(record, context))

    def _next(self) -> tuple[trace.Tracer, int]:
        with self._lock:
            self._last += 1
            if self._tracer is None:
                processor = AuditSpanProcessor(self._deliver, self._counters)
                self._tracer = make_audit_tracer(application_resource(), processor)
            return self._tracer, self._last


def _without_span(record: AuditRecord, context: trace.SpanContext | None) -> AuditRecord:
    return msgspec.structs.replace(
        record,
        trace_id=None if context is None else format_trace_id(context.trace_id),
        span_id=None if context is None else format_span_id(context.span_id),
        resource=dict(application_resource().attributes),
    )
