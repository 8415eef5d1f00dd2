"""Records as OTLP spans: the mapping of `otel_audit.attributes`, in protobuf.

A record's trace and span id are those of the application's own span, which becomes the parent, as
it is of an audit span in the process. The span's own id is derived from the record's, so that it is
the same on every delivery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgspec

from otel_audit.attributes import SCOPE_NAME, to_attributes
from otel_audit.errors import MissingExtraError
from otel_audit.pipeline.mending import mend_record, written_down
from otel_audit.pipeline.sink import Refused
from otel_audit.record import AuditRecord

try:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import (
        AnyValue,
        ArrayValue,
        InstrumentationScope,
        KeyValue,
        KeyValueList,
    )
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
except ImportError as missing:
    raise MissingExtraError("OTEL_AUDIT_EXPORTER=otlp", "otlp") from missing

LARGEST_REQUEST: Final = 3_500_000
"""Bytes of spans in one request; receivers take 4 MiB (gRPC's default) behind them, or more."""

_SCOPE: Final = InstrumentationScope(name=SCOPE_NAME)
_UNFIT: Final = (
    TypeError, ValueError, OverflowError, RecursionError, AttributeError, msgspec.MsgspecError,
)  # fmt: skip


class Carried(NamedTuple):
    """A record, and the span that carries it."""

    record: AuditRecord
    span: Span


def carry(records: Sequence[AuditRecord]) -> tuple[list[Carried], list[Refused]]:
    """Turn records into spans.

    Args:
        records: Any records.

    Returns:
        Those that a span can carry, in order; and those that none can, with the reason.
    """
    carried, refused = [], []
    for record in records:
        try:
            carried.append(_carried(record))
        except _UNFIT as error:
            reason = f"no span can carry the record: {type(error).__name__}"
            refused.append(Refused(str(record.record_id), written_down(record), reason))
    return carried, refused


def to_span(record: AuditRecord) -> Span:
    """Write a record as a span.

    Args:
        record: The record; its resource goes beside the span, see `to_request`.

    Raises:
        ValueError: No span can carry it: a text that is no Unicode, ids that are no hex, a time
            before 1970.
    """
    trace_id, parent = _place(record)
    return Span(
        trace_id=trace_id,
        span_id=hashlib.sha256(f"span {record.record_id}".encode()).digest()[:8],
        parent_span_id=parent,
        name=record.event_name,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=record.occurred_at,
        end_time_unix_nano=record.observed_at,
        attributes=_pairs(to_attributes(record)),
    )


def to_request(carried: Sequence[Carried]) -> bytes:
    """Write spans as an ``ExportTraceServiceRequest``, neighbours of the same resource together."""
    request = ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(
                resource=Resource(attributes=_pairs(resource)),
                scope_spans=[ScopeSpans(scope=_SCOPE, spans=[item.span for item in group])],
            )
            for resource, group in groupby(carried, key=lambda item: item.record.resource)
        ]
    )
    encoded: bytes = request.SerializeToString()
    return encoded


def parts_of(carried: Sequence[Carried]) -> Iterator[Sequence[Carried]]:
    """Split what is to be sent into requests of at most `LARGEST_REQUEST` bytes, or one span."""
    first, size = 0, 0
    for number, item in enumerate(carried):
        own = item.span.ByteSize()
        size += own
        if size > LARGEST_REQUEST and number > first:
            yield carried[first:number]
            first, size = number, own
    if first < len(carried):
        yield carried[first:]


def _carried(record: AuditRecord) -> Carried:
    try:
        _pairs(record.resource)
        return Carried(record, to_span(record))
    except _UNFIT:
        mended = mend_record(record)
        _pairs(mended.resource)
        return Carried(mended, to_span(mended))


def _place(record: AuditRecord) -> tuple[bytes, bytes]:
    if record.trace_id is None or record.span_id is None:
        # a trace of its own, which no other record shares
        return hashlib.sha256(f"trace {record.record_id}".encode()).digest()[:16], b""
    trace_id, span_id = bytes.fromhex(record.trace_id), bytes.fromhex(record.span_id)
    if len(trace_id) != 16 or len(span_id) != 8:  # noqa: PLR2004 - W3C Trace Context
        raise ValueError("trace ids have 16 bytes, span ids 8")
    return trace_id, span_id


def _pairs(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_any(value)) for key, value in attributes.items()]


def _any(value: Any) -> AnyValue:  # noqa: PLR0911 - one for each kind
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if value is None:
        return AnyValue()
    if isinstance(value, list | tuple):
        return AnyValue(array_value=ArrayValue(values=[_any(one) for one in value]))
    if isinstance(value, Mapping):
        return AnyValue(kvlist_value=KeyValueList(values=_pairs(value)))
    raise TypeError(f"an attribute cannot be a {type(value).__name__}")
