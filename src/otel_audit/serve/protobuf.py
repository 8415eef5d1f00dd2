"""OTLP requests in protobuf, read into `Incoming`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_audit.attributes import FLAG
from otel_audit.serve import salvage, shallow
from otel_audit.serve.incoming import Batch, Incoming, Origin
from otel_audit.serve.pairs import as_attributes, is_flagged, value_of
from otel_audit.serve.problems import undecodable


def spans(message: bytes) -> Iterator[Batch]:
    """Read an ``ExportTraceServiceRequest``.

    Args:
        message: The serialized message.

    Yields:
        A batch for each scope, so that whoever reads can pause in between.

    Raises:
        Problem: It is no such message.
    """
    try:
        # all of it is to be valid, not only what is read
        ExportTraceServiceRequest.FromString(message)
    except DecodeError:
        yield from _saved(message, "ExportTraceServiceRequest", is_log=False)
        return
    for group in shallow.TraceRequest.FromString(message).resource_spans:
        origin = _origin(group.resource)
        for scoped in group.scope_spans:
            yield _spans(scoped.spans, scoped.scope.name, origin)


def logs(message: bytes) -> Iterator[Batch]:
    """Read an ``ExportLogsServiceRequest``; see `spans`."""
    try:
        ExportLogsServiceRequest.FromString(message)
    except DecodeError:
        yield from _saved(message, "ExportLogsServiceRequest", is_log=True)
        return
    for group in shallow.LogsRequest.FromString(message).resource_logs:
        origin = _origin(group.resource)
        for scoped in group.scope_logs:
            items = [_log(record, scoped.scope.name, origin) for record in scoped.log_records]
            yield Batch(items)


def _saved(message: bytes, what: str, *, is_log: bool) -> Iterator[Batch]:
    """Decode item by item what cannot be decoded as a whole."""
    flag, kept = FLAG.encode(), 0
    try:
        parts = list(salvage.items(message))
    except salvage.FramingError:
        raise undecodable(f"the body is no {what} in protobuf") from None
    for raw, resource, scope in parts:
        origin = Origin(as_attributes(salvage.resource_pairs(resource)))
        name = salvage.scope_name(scope)
        batch = Batch()
        try:
            if is_log:
                LogRecord.FromString(raw)
                batch.items.append(_log(shallow.Log.FromString(raw), name, origin))
            else:
                Span.FromString(raw)
                batch = _spans([shallow.Span.FromString(raw)], name, origin)
        except DecodeError:
            if is_log or flag in raw:
                batch.broken.append((
                    salvage.mended(raw, name, origin, is_log=is_log), salvage.NOT_UTF8,
                ))  # fmt: skip
            else:
                batch.ignored += 1
        kept += len(batch.items) + len(batch.broken) + batch.ignored
        yield batch
    if not kept:
        raise undecodable(f"the body is no {what} in protobuf")


def _origin(resource: Any) -> Origin:
    return Origin(as_attributes(resource.attributes))


def _spans(found: Iterable[Any], scope: str, origin: Origin) -> Batch:
    batch = Batch()
    for span in found:
        pairs = span.attributes[:]
        if is_flagged(pairs):
            batch.items.append(_span(span, pairs, scope, origin))
        else:
            batch.ignored += 1
    return batch


def _span(span: Any, pairs: list[bytes], scope: str, origin: Origin) -> Incoming:
    return Incoming(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        as_attributes(pairs),
        scope,
        origin,
    )


def _log(record: Any, scope: str, origin: Origin) -> Incoming:
    time = record.time_unix_nano or record.observed_time_unix_nano
    body = record.body
    return Incoming(
        record.event_name,
        record.trace_id.hex(),
        record.span_id.hex(),
        "",
        time,
        time,
        as_attributes(record.attributes),
        scope,
        origin,
        is_log=True,
        body=value_of(AnyValue.FromString(b"".join(body))) if body else None,
    )
