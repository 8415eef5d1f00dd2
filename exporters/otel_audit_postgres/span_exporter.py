"""An OpenTelemetry span exporter for flagged audit spans: best effort.

``OTEL_TRACES_EXPORTER=otlp,audit_postgres`` puts it behind a `BatchSpanProcessor`, which skips
spans that are not sampled, drops the oldest when its queue is full, and does not try again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otel_audit._util.backoff import Backoff
from otel_audit._util.loop_thread import LoopThread
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.attributes import is_flagged
from otel_audit.config import AuditConfig
from otel_audit.delivery.flagged_spans import read_flagged
from otel_audit.delivery.sanitize import written_down
from otel_audit.delivery.sink import Refused
from otel_audit.errors import (
    ConfigurationError,
    InvalidAuditSpanError,
    StoreError,
    StoreUnavailableError,
)
from otel_audit.record import AuditRecord
from otel_audit.redaction import Redactor
from otel_audit.redaction.spans import SpanRedactor
from otel_audit_postgres.personal.protect import protector_from
from otel_audit_postgres.sink import PostgresSink

_logger = logging.getLogger(__name__)

_BACKOFF: Final = Backoff(first=0.1, longest=2.0)
"""Seconds; the longest is short, because an export has ten seconds in all by default."""
_LAST_GRACE: Final = 2.0
"""Seconds that closing the connection and the thread may take at shutdown."""

_best_effort_logged = threading.Event()


class PostgresAuditSpanExporter(SpanExporter):
    """Stores audit-flagged spans as records; ignores all others.

    A flagged span that lacks a mandatory attribute goes to ``audit.quarantine``. Safe to use from
    several threads; the connection lives on a thread of its own and is opened when it is first
    needed, also after a fork.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        timeout: float = 10.0,
        connect_timeout: float | None = None,
    ) -> None:
        """Remember the settings; no connection is opened yet.

        Args:
            dsn: The audit store; by default what ``OTEL_AUDIT_DSN`` or the settings' file says.
            timeout: Seconds that one export may take, trying again included.
            connect_timeout: Seconds that connecting may take; by default as set.

        Raises:
            ConfigurationError: There is no DSN, or a setting is wrong.
        """
        config = AuditConfig()
        dsn = dsn or config.asyncpg_dsn
        connect_timeout = connect_timeout or config.connect_timeout
        self._redacting = SpanRedactor(Redactor.from_config(config))
        if not dsn:
            raise ConfigurationError(
                "OTEL_AUDIT_DSN is not set, and the exporter audit_postgres needs it, such as "
                "postgresql://user:password@host/database"
            )
        self._dsn = dsn
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._background = LoopThread("otel-audit-exporter")
        self._ended = False
        if not _best_effort_logged.is_set():
            _best_effort_logged.set()
            _logger.warning(
                "The exporter audit_postgres is best effort: under a BatchSpanProcessor spans that "
                "are not sampled, or do not fit its queue, are not stored. Records that otel-audit "
                "makes itself do not need it: they have a delivery of their own"
            )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Store the flagged ones among the spans.

        Args:
            spans: Ended spans.

        Returns:
            SUCCESS when all flagged ones are stored, or in quarantine; FAILURE when not.
        """
        flagged = [span for span in spans if is_flagged(span)]
        if not flagged:
            return SpanExportResult.SUCCESS
        if self._ended:
            self._log_lost(len(flagged), "the exporter was shut down")
            return SpanExportResult.FAILURE
        try:
            self._background.call(lambda: self._store(flagged), self._timeout)
        except StoreError as error:
            self._log_lost(len(flagged), str(error))
        except TimeoutError:
            self._log_lost(len(flagged), f"no answer within {self._timeout:g} seconds")
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the application
            self._log_lost(len(flagged), f"an unexpected {type(error).__name__}")
        else:
            return SpanExportResult.SUCCESS
        return SpanExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait for exports under way; nothing else waits here.

        Args:
            timeout_millis: Milliseconds to wait; the default is that of OpenTelemetry's exporters.

        Returns:
            Whether none is under way any more.
        """
        return self._background.wait_idle(timeout_millis / 1000)

    def shutdown(self, timeout_millis: int = 30_000) -> None:
        """Let exports under way end, then close the connection and the thread.

        Args:
            timeout_millis: Milliseconds to wait in all; what is under way then is cancelled.
        """
        if self._ended:
            return
        self._ended = True
        until = time.monotonic() + timeout_millis / 1000
        self._background.wait_idle(max(timeout_millis / 1000 - _LAST_GRACE, 0))
        try:
            if self._background.kept is not None:
                self._background.call(self._close, _left(until))
        except Exception as error:  # noqa: BLE001 - the end must not fail
            log_limited(_logger, "shutdown", "The exporter did not close in time", error=error)
        self._background.stop(_left(until))

    async def _store(self, spans: Sequence[ReadableSpan]) -> None:
        """Store; try again while the store is away. The waiting caller cancels this in the end."""
        records, refused = _read(spans, self._redacting)
        until = time.monotonic() + self._timeout
        async with self._connection() as sink:
            for pause in _BACKOFF.pauses():
                try:
                    written = await sink.write(records)
                    if written.postponed:
                        raise StoreError(written.why_postponed)
                    await sink.quarantine(refused)
                except StoreUnavailableError:
                    if time.monotonic() + pause >= until:
                        raise
                else:
                    return
                await asyncio.sleep(pause)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PostgresSink]:
        """One export at a time, as there is one connection."""
        if self._background.kept is None:
            sink = PostgresSink(
                self._dsn,
                connect_timeout=self._connect_timeout,
                statement_timeout=self._timeout,
                protector=protector_from(AuditConfig()),
            )
            self._background.kept = (sink, asyncio.Lock())
        sink, lock = self._background.kept
        async with lock:
            yield sink

    async def _close(self) -> None:
        async with self._connection() as sink:
            await sink.close()

    def _log_lost(self, count: int, why: str) -> None:
        log_limited(_logger, "export", "%d audit spans were not stored: %s", count, why)


def _read(
    spans: Sequence[ReadableSpan], redacting: SpanRedactor
) -> tuple[list[AuditRecord], list[Refused]]:
    records, refused = [], []
    for span in spans:
        try:
            entry = read_flagged(span, redacting)
        except InvalidAuditSpanError as error:
            entry = Refused("", written_down({"name": redacting.name(span.name)}), str(error))
        if isinstance(entry, Refused):
            refused.append(entry)
        else:
            records.append(entry)
    return records, refused


def _left(until: float) -> float:
    """Seconds until then, at least a moment."""
    # closing needs turns of the event loop also when the time is up
    return max(until - time.monotonic(), 0.05)
