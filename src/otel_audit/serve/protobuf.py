"""OTLP requests in protobuf, read into `Incoming`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from otel_audit.attributes import FLAG
from otel_audit.serve import salvage, shallow
from otel_audit.serve.incoming import MOST_ITEMS, Batch, Incoming, Origin, batched
from otel_audit.serve.pairs import as_attributes, is_flagged, value_of
from otel_audit.serve.problems import too_many, undecodable

_FLAG: Final = FLAG.encode()

_MOST_PARTS: Final = 500_000
"""Resources, scopes, spans and whatever else is beside them in one request."""

_PAUSE: Final = 1_000
"""Parts that are counted before others may have their turn."""


def spans(message: bytes) -> Iterator[Batch]:
    """Read an ``ExportTraceServiceRequest``.

    Args:
        message: The serialized message.

    Yields:
        Batches of one scope each, small or empty, so that whoever reads can pause in between.

    Raises:
        Problem: It is no such message, or too many are in it.
    """
    yield from _counted(message, "spans")
    try:
        # all of it is to be valid, not only what is read
        ExportTraceServiceRequest.FromString(message)
    except DecodeError:
        yield from _saved(message, "ExportTraceServiceRequest", is_log=False)
        return
    for group in shallow.TraceRequest.FromString(message).resource_spans:
        if not group.scope_spans:
            yield Batch()
            continue
        origin = _origin(group.resource)
        for scoped in group.scope_spans:
            add = functools.partial(_add_span, scope=scoped.scope.name, origin=origin)
            yield from batched(scoped.spans, add)


def logs(message: bytes) -> Iterator[Batch]:
    """Read an ``ExportLogsServiceRequest``; see `spans`."""
    yield from _counted(message, "log records")
    try:
        ExportLogsServiceRequest.FromString(message)
    except DecodeError:
        yield from _saved(message, "ExportLogsServiceRequest", is_log=True)
        return
    for group in shallow.LogsRequest.FromString(message).resource_logs:
        if not group.scope_logs:
            yield Batch()
            continue
        origin = _origin(group.resource)
        for scoped in group.scope_logs:
            add = functools.partial(_add_log, scope=scoped.scope.name, origin=origin)
            yield from batched(scoped.log_records, add)


def _counted(message: bytes, what: str) -> Iterator[Batch]:
    """Refuse too many before they are decoded: two bytes can become a hundred in memory."""
    items = 0
    for seen, is_item in enumerate(salvage.parts(message), 1):
        items += is_item
        if items > MOST_ITEMS:
            raise too_many(MOST_ITEMS, what)
        if seen > _MOST_PARTS:
            raise too_many(_MOST_PARTS, "parts")
        if seen % _PAUSE == 0:
            yield Batch()


def _saved(message: bytes, what: str, *, is_log: bool) -> Iterator[Batch]:
    """Decode item by item what cannot be decoded as a whole."""
    kept = 0
    try:
        for scopes in salvage.groups(message):
            origin = None
            for group in scopes:
                if origin is None:
                    origin = Origin(as_attributes(salvage.resource_pairs(group.resource)))
                for batch in _saved_items(group, origin, is_log=is_log):
                    kept += len(batch.items) + len(batch.broken) + batch.ignored
                    yield batch
            if origin is None:
                yield Batch()
    except salvage.FramingError:
        raise undecodable(f"the body is no {what} in protobuf") from None
    if not kept:
        raise undecodable(f"the body is no {what} in protobuf")


def _saved_items(group: salvage.Group, origin: Origin, *, is_log: bool) -> Iterator[Batch]:
    scope = salvage.scope_name(group.scope)
    save = functools.partial(_save, scope=scope, origin=origin, is_log=is_log)
    return batched(group.items, save)


def _save(batch: Batch, raw: bytes, *, scope: str, origin: Origin, is_log: bool) -> None:
    if not is_log and _FLAG not in raw:
        batch.ignored += 1
        return
    try:
        if is_log:
            LogRecord.FromString(raw)
            _add_log(batch, shallow.Log.FromString(raw), scope, origin)
        else:
            Span.FromString(raw)
            _add_span(batch, shallow.Span.FromString(raw), scope, origin)
    except DecodeError:
        batch.broken.append((
            salvage.mended(raw, scope, origin, is_log=is_log), salvage.NOT_UTF8,
        ))  # fmt: skip


def _origin(resource: Any) -> Origin:
    return Origin(as_attributes(resource.attributes))


def _add_span(batch: Batch, span: Any, scope: str, origin: Origin) -> None:
    pairs = span.attributes[:]
    if is_flagged(pairs):
        batch.items.append(_span(span, pairs, scope, origin))
    else:
        batch.ignored += 1


def _add_log(batch: Batch, record: Any, scope: str, origin: Origin) -> None:
    batch.items.append(_log(record, scope, origin))


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
