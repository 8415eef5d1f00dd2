"""Sets actor and tenant of the action under way on the application's other spans, if configured."""

from __future__ import annotations

import logging
import threading
import weakref
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.util.types import AttributeValue

from otel_audit import attributes as names
from otel_audit._util.ratelimited_log import log_limited
from otel_audit.record import ANONYMOUS
from otel_audit.scope import Origin, open_scope

_logger = logging.getLogger(__name__)

# finding out who it is may itself make spans
_finding_out: ContextVar[bool] = ContextVar("otel_audit_finding_out", default=False)


class ChildSpans(SpanProcessor):
    """Sets actor and tenant, as far as known, on each span that starts inside of an action."""

    def __init__(self) -> None:
        self._active = True
        self._lock = threading.Lock()
        self._providers: weakref.WeakSet[TracerProvider] = weakref.WeakSet()

    def attach(self) -> None:
        """Listen to the application's tracer provider, which may be set at any time."""
        provider = trace.get_tracer_provider()
        if not isinstance(provider, TracerProvider) or provider in self._providers:
            return
        with self._lock:
            if provider not in self._providers:
                self._providers.add(provider)
                provider.add_span_processor(self)

    def detach(self) -> None:
        """Do nothing from now on: a processor cannot be removed from its provider."""
        self._active = False

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the base class names it
        """Set the attributes. Never raises."""
        scope = open_scope()
        if scope is None or not self._active or _finding_out.get():
            return
        token = _finding_out.set(True)
        try:
            span.set_attributes(_attributes_of(scope.known_origin()))
        except Exception as error:  # noqa: BLE001 - an exception here would reach the application
            log_limited(_logger, "child spans", "A span goes without its actor", error=error)
        finally:
            _finding_out.reset(token)

    def on_end(self, span: ReadableSpan) -> None:
        """Do nothing."""


def _attributes_of(origin: Origin) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue | None] = {}
    actor, tenant = origin.actor, origin.tenant
    if actor is not None and actor.id != ANONYMOUS.id:
        found |= {
            names.ACTOR_ID: actor.id,
            names.ACTOR_TYPE: actor.type,
            names.ACTOR_ROLE: actor.role,
        }
    if tenant is not None:
        found |= {names.TENANT_ID: tenant.id, names.TENANT_SLUG: tenant.slug}
    return {name: value for name, value in found.items() if value is not None}
