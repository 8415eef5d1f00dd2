"""OTLP requests in protobuf, read into `Incoming`."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_audit.attributes import FLAG
from otel_audit.serve import salvage
from otel_audit.serve.incoming import Batch, Incoming, Origin
from otel_audit.serve.problems import undecodable

DEEPEST: Final = 60
"""Levels of lists and maps in a value; protobuf itself gives up at 100 messages."""


def spans(message: bytes) -> Iterator[Batch]:
    """Read an ``ExportTraceServiceRequest``.

    Args:
        message: The serialized message.

    Yields:
        A batch for each scope, so that whoever reads can pause in between.

    Raises:
        Problem: It is no such message.
    """
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(message)
    except DecodeError:
        yield from _saved(message, "ExportTraceServiceRequest", is_log=False)
        return
    for group in request.resource_spans:
        origin = _origin(group.resource)
        for scoped in group.scope_spans:
            yield _spans(scoped.spans, scoped.scope.name, origin)


def logs(message: bytes) -> Iterator[Batch]:
    """Read an ``ExportLogsServiceRequest``; see `spans`."""
    request = ExportLogsServiceRequest()
    try:
        request.ParseFromString(message)
    except DecodeError:
        yield from _saved(message, "ExportLogsServiceRequest", is_log=True)
        return
    for group in request.resource_logs:
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
        origin = Origin(_attributes(salvage.resource_pairs(resource)))
        name = salvage.scope_name(scope)
        batch = Batch()
        try:
            if is_log:
                batch.items.append(_log(LogRecord.FromString(raw), name, origin))
            else:
                batch = _spans([Span.FromString(raw)], name, origin)
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


def _origin(resource: Resource) -> Origin:
    return Origin(_attributes(resource.attributes))


def _spans(found: Iterable[Span], scope: str, origin: Origin) -> Batch:
    batch = Batch()
    for span in found:
        if _is_flagged(span):
            batch.items.append(span_as_incoming(span, scope, origin))
        else:
            batch.ignored += 1
    return batch


def _is_flagged(span: Span) -> bool:
    return any(pair.key == FLAG and pair.value.bool_value is True for pair in span.attributes)


def span_as_incoming(span: Span, scope: str, origin: Origin) -> Incoming:
    """Take out of a span what a record needs."""
    return Incoming(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _attributes(span.attributes),
        scope,
        origin,
    )


def _log(record: LogRecord, scope: str, origin: Origin) -> Incoming:
    time = record.time_unix_nano or record.observed_time_unix_nano
    return Incoming(
        record.event_name,
        record.trace_id.hex(),
        record.span_id.hex(),
        "",
        time,
        time,
        _attributes(record.attributes),
        scope,
        origin,
        is_log=True,
        body=_value(record.body, 0) if record.HasField("body") else None,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        value = pair.value
        # nearly all are strings
        found[pair.key] = value.string_value or _value(value, 0)
    return found


def _value(value: AnyValue, depth: int) -> Any:
    kind = value.WhichOneof("value")
    if kind is None or depth > DEEPEST:
        return None
    if kind == "array_value":
        return [_value(one, depth + 1) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _value(pair.value, depth + 1) for pair in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind)
