"""A plain OpenTelemetry exporter: flagged spans of any tracer go through a spool to a receiver."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.attributes import is_flagged
from otel_audit.config import AuditConfig
from otel_audit.delivery.factory import local_quarantine, make_delivery
from otel_audit.delivery.flagged_spans import read_flagged
from otel_audit.delivery.metrics import Counters
from otel_audit.redaction import Redactor
from otel_audit.redaction.spans import SpanRedactor
from otel_audit_otlp.endpoint import Endpoint
from otel_audit_otlp.sink import OtlpSink

_logger = logging.getLogger(__name__)


class OtlpAuditExporter(SpanExporter):
    """Sends audit-flagged spans as records over OTLP/HTTP; ignores all others.

    Spans that it has taken are kept in a spool, and sent until the receiver has them: by this
    process, or by the next one of the same service. A flagged span that lacks a mandatory attribute
    is kept in a quarantine on this machine. Secrets are redacted. Safe to use from several threads,
    and after a fork.

    Under a `BatchSpanProcessor` it gets only spans that are sampled and fit its queue. Records that
    otel-audit makes itself do not need it: they have a delivery of their own.

    Example::

        provider = TracerProvider()
        exporter = OtlpAuditExporter(AuditConfig(otlp_endpoint="http://127.0.0.1:4318"))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    """

    def __init__(self, config: AuditConfig | None = None) -> None:
        """Open the spool, without a connection.

        Args:
            config: The settings; by default those of the environment and the settings' file, with
                ``exporter="otlp"``.

        Raises:
            ConfigurationError: There is no endpoint, the spool cannot be kept, or another setting
                is wrong.
        """
        config = AuditConfig(exporter="otlp") if config is None else config
        endpoint = Endpoint.from_config(config)
        endpoint.warn_of_clear_text()
        self._redacting = SpanRedactor(Redactor.from_config(config))
        self._counters = Counters()
        make_sink = functools.partial(OtlpSink, endpoint, local_quarantine(config).keep)
        self._delivery = make_delivery(config, make_sink, self._counters)
        # re-entrant: a span may end in the middle of this on the same thread (a signal handler, the
        # garbage collector)
        self._lock = threading.RLock()
        self._ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take over the flagged ones among the spans.

        Args:
            spans: Ended spans.

        Returns:
            SUCCESS when all flagged ones are kept until the receiver has them; FAILURE when not.
        """
        flagged = [span for span in spans if is_flagged(span)]
        if not flagged:
            return SpanExportResult.SUCCESS
        with self._lock:
            if self._ended:
                log_limited(
                    _logger, "ended", "%d audit spans are lost: the exporter was shut down",
                    len(flagged), level=logging.CRITICAL,
                )  # fmt: skip
                return SpanExportResult.FAILURE
            lost = self._counters.dropped
            for span in flagged:
                self._take(span)
            lost = self._counters.dropped - lost
        return SpanExportResult.FAILURE if lost else SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until the receiver has everything that was exported before.

        Args:
            timeout_millis: Milliseconds to wait; the default is that of OpenTelemetry's exporters.

        Returns:
            Whether it has.
        """
        return self._delivery.flush(timeout_millis / 1000)

    def shutdown(self, timeout_millis: int = 10_000) -> None:
        """Send what waits; what the receiver does not take in time stays in the spool.

        Args:
            timeout_millis: Milliseconds to wait; by default as long as other records have.
        """
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._delivery.close(timeout_millis / 1000)

    def _take(self, span: ReadableSpan) -> None:
        try:
            entry = read_flagged(span, self._redacting)
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the application
            self._counters.add("dropped")
            log_limited(_logger, "take", "A flagged span gave no record", error=error)
        else:
            self._delivery.submit(entry)
