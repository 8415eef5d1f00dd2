"""OTLP requests in protobuf, read into `ReceivedItem`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from otel_audit.attributes import FLAG
from otel_audit.server import decode_protobuf_lazily, recover_protobuf
from otel_audit.server.decode_attributes import Nodes, as_attributes, body_of, is_flagged
from otel_audit.server.errors import too_many, undecodable
from otel_audit.server.items import (
    MOST_ITEMS,
    Batch,
    ItemDecoder,
    ItemPath,
    ReceivedItem,
    Resource,
    SharedResources,
)
from otel_audit.server.request_budget import MOST_PARTS, RequestBudget

_FLAG: Final = FLAG.encode()

_PAUSE: Final = 1_000
"""Parts that are counted before others may have their turn."""

_DECODED_AS_A_WHOLE: Final = 65_536
"""Bytes of a request in which nothing was found that are decoded to see whether it is one."""


def spans(message: bytes, allowance: RequestBudget | None = None) -> Iterator[Batch]:
    """Read an ``ExportTraceServiceRequest``.

    Args:
        message: The serialized message.
        allowance: How much may be in it; by default as much as in any.

    Yields:
        Batches of one scope each, small or empty, so that whoever reads can pause in between.

    Raises:
        RequestError: It is not such a message, or too many are in it.
    """
    yield from _counted(message, "spans", allowance, ExportTraceServiceRequest)
    yield from _read(message, ExportTraceServiceRequest, _nodes(allowance), is_log=False)


def logs(message: bytes, allowance: RequestBudget | None = None) -> Iterator[Batch]:
    """Read an ``ExportLogsServiceRequest``; see `spans`."""
    yield from _counted(message, "log records", allowance, ExportLogsServiceRequest)
    yield from _read(message, ExportLogsServiceRequest, _nodes(allowance), is_log=True)


def _nodes(allowance: RequestBudget | None) -> Nodes:
    return Nodes() if allowance is None else allowance.nodes


def _counted(
    message: bytes, what: str, allowance: RequestBudget | None, request: Any
) -> Iterator[Batch]:
    """Refuse too many before they are decoded: two bytes can become a hundred in memory."""
    most_items = MOST_ITEMS if allowance is None else allowance.items
    most_parts = MOST_PARTS if allowance is None else allowance.parts
    items = 0
    try:
        for seen, is_item in enumerate(recover_protobuf.parts(message), 1):
            items += is_item
            if items > most_items:
                raise too_many(most_items, what)
            if seen > most_parts:
                raise too_many(most_parts, "parts")
            if seen % _PAUSE == 0:
                yield Batch()
    except recover_protobuf.FramingError:
        raise _no_such(request) from None


def _no_such(request: Any) -> Exception:
    return undecodable(f"the body is not a valid {request.DESCRIPTOR.name} in protobuf")


@dataclass(frozen=True, slots=True)
class _Scope:
    """The common part of a scope's items."""

    name: str
    origin: Resource
    is_log: bool
    nodes: Nodes


def _read(message: bytes, request: Any, nodes: Nodes, *, is_log: bool) -> Iterator[Batch]:
    kept = 0
    known = SharedResources()
    for number, group in enumerate(recover_protobuf.groups(message)):
        origin: Resource | None = None
        for index, scoped in enumerate(recover_protobuf.scopes(message, group)):
            origin = origin or recover_protobuf.resource_of(message, group, known, nodes)
            scope = _Scope(recover_protobuf.scope_of(message, scoped), origin, is_log, nodes)
            batch = Batch()
            for at, (start, stop) in enumerate(recover_protobuf.items(message, scoped)):
                _ITEMS.add(batch, message[start:stop], (number, index, at), scope)
                if batch.is_full:
                    kept += len(batch)
                    yield batch
                    batch = Batch()
            kept += len(batch)
            yield batch
        if origin is None:
            yield Batch()
    if not kept and len(message) <= _DECODED_AS_A_WHOLE:
        try:
            request.FromString(message)
        except DecodeError:
            raise _no_such(request) from None


def _decode(batch: Batch, raw: bytes, place: ItemPath, scope: _Scope) -> None:
    try:
        if scope.is_log:
            batch.items.append(_log(decode_protobuf_lazily.Log.FromString(raw), raw, place, scope))
            return
        span = decode_protobuf_lazily.Span.FromString(raw)
        pairs = span.attributes[:]
        if is_flagged(pairs):
            batch.items.append(_span(span, pairs, place, scope))
        else:
            batch.ignored += 1
    except DecodeError:
        _add_undecodable(batch, raw, place, scope, recover_protobuf.NOT_UTF8)


def _add_undecodable(batch: Batch, raw: bytes, place: ItemPath, scope: _Scope, why: str) -> None:
    left = recover_protobuf.recovered(
        raw, scope.name, scope.origin, is_log=scope.is_log, place=place
    )
    batch.undecodable.append((left, why))


def _span(span: Any, pairs: list[bytes], place: ItemPath, scope: _Scope) -> ReceivedItem:
    return ReceivedItem(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        as_attributes(pairs, scope.nodes),
        scope.name,
        scope.origin,
        place=place,
    )


def _log(record: Any, raw: bytes, place: ItemPath, scope: _Scope) -> ReceivedItem:
    time = record.time_unix_nano or record.observed_time_unix_nano
    return ReceivedItem(
        record.event_name,
        record.trace_id.hex(),
        record.span_id.hex(),
        "",
        time,
        time,
        as_attributes(record.attributes, scope.nodes),
        scope.name,
        scope.origin,
        is_log=True,
        body=body_of(record.body, scope.nodes),
        place=place,
        raw=raw,
    )


def _may_be_flagged(raw: bytes) -> bool:
    return _FLAG in raw


_ITEMS: Final = ItemDecoder(
    _may_be_flagged, recover_protobuf.has_too_many_fields, _decode, _add_undecodable
)
