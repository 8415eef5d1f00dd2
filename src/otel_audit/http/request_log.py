"""The request log: one line of JSON a request, for those who ship logs."""

from __future__ import annotations

import datetime as dt
import logging
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import format_span_id, format_trace_id

from otel_audit._util.printable import ascii_json
from otel_audit._util.unconfigured_log import is_configured
from otel_audit.record import AuditRecord, to_json

logger = logging.getLogger("otel_audit.requests")


def begin_request_log() -> None:
    """Write the lines to standard error, unless the application has configured their logger."""
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not is_configured(logger.name):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)


def log_request(record: AuditRecord, server_span: trace.Span | None) -> None:
    """Write the line of a request.

    Args:
        record: The finished record; of a request that is not recorded, one of level ``none``.
        server_span: The application's own span of the request, if any.
    """
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", ascii_json(to_json(line_of(record, server_span)).decode()))


def line_of(record: AuditRecord, server_span: trace.Span | None) -> dict[str, Any]:
    """Return what the line holds: redacted facts only, without bodies and changes.

    Returns:
        Names to plain values; what is not known is left out. ``time`` is RFC 3339 in UTC,
        ``duration_ms`` milliseconds, ``record_id`` only there where there is such a record.
    """
    request, response, source = record.request, record.response, record.source
    error, tenant = record.error, record.tenant
    when = dt.datetime.fromtimestamp(record.occurred_at / 1e9, dt.UTC)
    found = {
        "time": when.isoformat(timespec="milliseconds"),
        "duration_ms": round(record.duration / 1e6, 3),
        "event": record.event_name,
        "outcome": record.outcome,
        "method": request and request.method,
        "route": request and request.route,
        "path": request and request.path,
        "query": request and request.query,
        "host": request and request.host,
        "http_version": request and request.http_version,
        "request_id": request and request.id,
        "status": response and response.status_code,
        "actor": record.actor.id,
        "actor_type": record.actor.type,
        "tenant": tenant and tenant.id,
        "client": source and source.address,
        "user_agent": source and source.user_agent,
        "error": error and error.type,
        "level": record.level,
        "record_id": None if record.level == "none" else record.record_id,
        **_trace_of(server_span),
    }
    return {name: value for name, value in found.items() if value is not None}


def _trace_of(server_span: trace.Span | None) -> dict[str, str]:
    if server_span is None:
        return {}
    context = server_span.get_span_context()
    return {
        "trace_id": format_trace_id(context.trace_id),
        "span_id": format_span_id(context.span_id),
    }
