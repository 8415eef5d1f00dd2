"""Our own tracer provider: every audit span is recorded whole, whatever the application samples."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.attributes import SCOPE_NAME, plain_values, to_attributes
from otel_audit.record import AuditRecord

_logger = logging.getLogger("otel_audit")

_UNLIMITED = SpanLimits(
    max_attributes=SpanLimits.UNSET,
    max_events=SpanLimits.UNSET,
    max_links=SpanLimits.UNSET,
    max_span_attributes=SpanLimits.UNSET,
    max_event_attributes=SpanLimits.UNSET,
    max_link_attributes=SpanLimits.UNSET,
    max_attribute_length=SpanLimits.UNSET,
    max_span_attribute_length=SpanLimits.UNSET,
)


def make_resource() -> None:
    """Make the resource for a process that has no tracing of its own, from the environment.

    It is made when auditing begins, as the SDK needs threads for it: none can be started any more
    when the interpreter ends, and an event loop that is watched refuses to wait for them.
    """
    global _own, _known  # noqa: PLW0603 - made again each time that auditing begins
    _known = (lambda: None), {}
    try:
        _own = Resource.create()
    except Exception as error:  # noqa: BLE001 - what the environment says can be read without
        log_limited(_logger, "resource", "Resource detectors could not be asked", error=error)
        _own = OTELResourceDetector().detect()


def application_resource() -> Resource:
    """The resource of the application's own tracing; one made from the environment without it."""
    found = getattr(trace.get_tracer_provider(), "resource", None)
    if isinstance(found, Resource):
        return found
    if _own is None:
        make_resource()
    assert _own is not None  # noqa: S101 - just made
    return _own


def resource_attributes() -> dict[str, Any]:
    """The attributes of `application_resource`, as plain values; not to be changed."""
    global _known  # noqa: PLW0603 - read several times for each action
    provider = trace.get_tracer_provider()
    of_provider, known = _known
    if of_provider() is not provider:
        known = plain_values(application_resource().attributes)
        _known = weakref.ref(provider), known
    return known


_own: Resource | None = None
_known: tuple[Callable[[], trace.TracerProvider | None], dict[str, Any]] = (lambda: None), {}


def make_audit_tracer(resource: Resource, *processors: SpanProcessor) -> trace.Tracer:
    """Make the tracer of audit spans.

    Args:
        resource: Who produces the records.
        processors: See the spans.

    Returns:
        A tracer whose spans are always recorded, with no limit on attributes; a no-op one under
        ``OTEL_SDK_DISABLED=true``.
    """
    provider = TracerProvider(
        sampler=ALWAYS_ON, resource=resource, span_limits=_UNLIMITED, shutdown_on_exit=False
    )
    for processor in processors:
        provider.add_span_processor(processor)
    return provider.get_tracer(SCOPE_NAME)


def trace_record(tracer: trace.Tracer, record: AuditRecord, server_span: trace.Span | None) -> None:
    """Make the audit span of a record; it is over at once, and was never the current one.

    Args:
        tracer: From `make_audit_tracer`.
        record: The finished record.
        server_span: The application's span that becomes the parent, if any.
    """
    parent = trace.set_span_in_context(
        server_span if server_span is not None else trace.INVALID_SPAN
    )
    span = tracer.start_span(
        record.event_name,
        context=parent,
        attributes=to_attributes(record),
        start_time=record.occurred_at,
    )
    span.end(record.observed_at)
