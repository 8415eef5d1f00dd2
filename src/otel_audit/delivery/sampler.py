"""A sampler that lets spans be seen here which the application's own sampler leaves out."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from otel_audit.attributes import FLAG


class AuditSampler(Sampler):
    """Wraps another sampler: flagged and server spans that it drops are recorded all the same.

    They are recorded, not sampled: exporters behind the SDK's own span processors do not get them,
    and what the application's sampler decides for their children stays as it was. A span must be
    flagged when it starts; a mark that comes later is seen on server spans and sampled ones only.

    Source: OpenTelemetry specification, trace SDK, sampling (``RECORD_ONLY``).
    """

    def __init__(self, inner: Sampler) -> None:
        """Wrap a sampler.

        Args:
            inner: The sampler that decides about other spans.
        """
        self.inner = inner

    def should_sample(  # noqa: PLR0913, PLR0917 - the SDK's signature
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Decide as the inner sampler does, but drop nothing that may carry a record."""
        result = self.inner.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )
        if result.decision is not Decision.DROP:
            return result
        if kind is not SpanKind.SERVER and (attributes is None or attributes.get(FLAG) is not True):
            return result
        # the attributes of a result that drops are none: those given at the start are kept
        return SamplingResult(Decision.RECORD_ONLY, attributes, result.trace_state)

    def get_description(self) -> str:
        """Name it, and the wrapped one."""
        return f"AuditSampler{{{self.inner.get_description()}}}"
