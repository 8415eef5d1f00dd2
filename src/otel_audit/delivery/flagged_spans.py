"""Spans that somebody else has flagged: each becomes a record, sampled or not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from otel_audit import attributes as names
from otel_audit._util.ids import derived_uuid7
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.delivery.queue_entries import Entry
from otel_audit.delivery.sampler import AuditSampler
from otel_audit.delivery.sink import Refused
from otel_audit.errors import InvalidAuditSpanError
from otel_audit.record import to_json
from otel_audit.redaction import Redactor
from otel_audit.redaction.spans import SpanRedactor

_logger = logging.getLogger(__name__)


class TakesSpans(Protocol):
    """The receiver of flagged spans."""

    def deliver_span(self, entry: Entry, /) -> None:
        """Deliver a span's record. Never raises."""


class FlaggedSpans(SpanProcessor):
    """Reads the record out of each flagged span of the application's own tracing."""

    def __init__(
        self, recorder: TakesSpans, redactor: Redactor, on_error: Callable[[], None]
    ) -> None:
        """Remember who takes the records.

        Args:
            recorder: Takes them.
            redactor: Takes secrets out, before anything is kept.
            on_error: Called for each failure of ours.
        """
        self._recorder = recorder
        self._redacting = SpanRedactor(redactor)
        self._on_error = on_error
        self._provider: TracerProvider | None = None

    def attach(self, provider: object) -> bool:
        """Look at a provider's spans from now on; a second time it does nothing.

        Args:
            provider: The application's tracer provider.

        Returns:
            Whether its spans are seen now: it must be the SDK's own.
        """
        if self._provider is not None or not isinstance(provider, TracerProvider):
            return self._provider is not None
        self._provider = provider
        sampler = AuditSampler(provider.sampler)
        for tracer in _tracers_of(provider):
            if tracer.sampler is provider.sampler:
                tracer.sampler = sampler
        provider.sampler = sampler
        provider.add_span_processor(self)
        return True

    def detach(self) -> None:
        """Look at no span any more, and leave the provider's sampler as it was."""
        provider, self._provider = self._provider, None
        if provider is None or not isinstance(provider.sampler, AuditSampler):
            return
        ours = provider.sampler
        for tracer in _tracers_of(provider):
            if tracer.sampler is ours:
                tracer.sampler = ours.inner
        provider.sampler = ours.inner

    def on_end(self, span: ReadableSpan) -> None:
        """Deliver the record, if the span carries one. Never raises."""
        if self._provider is None or not names.is_flagged(span):
            return
        try:
            self._recorder.deliver_span(read_flagged(span, self._redacting))
        except Exception as error:  # noqa: BLE001 - an exception here would reach the application
            self._on_error()
            log_limited(_logger, "flagged", "A flagged span gave no record", error=error)


def read_flagged(span: ReadableSpan, redacting: SpanRedactor) -> Entry:
    """Read the record of another program's flagged span.

    Args:
        span: An ended span with ``audit.flagged``.
        redacting: Takes secrets out, before anything is kept.

    Returns:
        The record; where the span lacks what a record must say, what is to be quarantined, and why.

    Raises:
        InvalidAuditSpanError: The span was never started, so it holds nothing.
    """
    context = span.get_span_context()
    if context is None or span.start_time is None:
        raise InvalidAuditSpanError("a span without a context, or that was never started")
    attributes = redacting.redact(span.attributes or {})
    try:
        return names.record_from_span(span, attributes, redacting.name(span.name))
    except InvalidAuditSpanError:
        refused = _refused(span, names.span_ids(context), span.start_time, attributes, redacting)
        log_limited(
            _logger, "invalid", "A flagged span goes to quarantine: %s", refused.reason,
            level=logging.WARNING,
        )  # fmt: skip
        return refused


def _refused(
    span: ReadableSpan,
    own_ids: tuple[str, str],
    start: int,
    attributes: Mapping[str, Any],
    redacting: SpanRedactor,
) -> Refused:
    trace_id, span_id = own_ids
    received = {
        "name": redacting.name(span.name),
        "trace_id": trace_id,
        "span_id": span_id,
        "start_time": start,
        "end_time": span.end_time,
        # what is not an attribute of a record has not been looked at yet
        "attributes": redacting.redactor.document(dict(attributes)),
        "resource": names.plain_values(span.resource.attributes),
    }
    named = attributes.get(names.RECORD_ID)
    record_id = named if isinstance(named, str) else derived_uuid7(start, trace_id, span_id)
    return Refused(record_id, to_json(received), names.what_is_wrong(attributes, "audit span"))


def _tracers_of(provider: TracerProvider) -> list[Any]:
    """The tracers that were made already: each copied the provider's sampler."""
    made = getattr(provider, "_tracers", None)
    if made is None:
        _logger.warning(
            "Tracers that were made before auditing began cannot be reached in this version of "
            "the OpenTelemetry SDK: a flagged span of theirs that is not sampled gives no record"
        )
        return []
    return list(made.values())
