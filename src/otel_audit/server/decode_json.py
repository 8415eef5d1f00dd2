"""OTLP requests in JSON, read into `ReceivedItem`.

OTLP's JSON differs from protobuf's own mapping (https://opentelemetry.io/docs/specs/otlp/
#json-protobuf-encoding): ids are in hex, integers of 64 bits may be strings, enums are numbers, and
unknown fields are ignored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgspec

from otel_audit.attributes import FLAG
from otel_audit.server import scan_json
from otel_audit.server.decode_attributes import DEEPEST
from otel_audit.server.errors import undecodable
from otel_audit.server.items import (
    LARGE,
    MOST_ATTRIBUTES,
    MOST_ITEMS,
    Batch,
    ItemDecoder,
    ItemPath,
    ReceivedItem,
    Resource,
    SharedResources,
)
from otel_audit.server.recover_json import Lenient, UndecodableError
from otel_audit.server.request_budget import MOST_OBJECTS, RequestBudget
from otel_audit.server.scan_json import ListNames, Range, Splitter, StructureError

_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{32}|[0-9a-fA-F]{16})?").fullmatch
# the closing quote may be missing: then it matches to the end, and is not tried again behind each
_TEXTS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)

_FLAG: Final = FLAG.encode()
_BOM: Final = b"\xef\xbb\xbf"
_MOST_IN_ITEM: Final = 20_000
"""Objects and lists in one item."""

_LARGEST_RESOURCE: Final = 262_144
"""Bytes of a resource; each of its spans repeats it."""
_DECODED_AS_A_WHOLE: Final = 65_536
"""Bytes of a request in which nothing was found that are decoded to say what is wrong."""

_UINT64: Final = 1 << 64
"""One above the largest ``fixed64``."""
_INT64: Final = 1 << 63
"""One above the largest `int64`."""

_Long: TypeAlias = int | str


class _Value(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: _Long | None = None
    double_value: float | str | None = None
    array_value: _Array | None = None
    kvlist_value: _List | None = None
    bytes_value: str | None = None


class _Array(msgspec.Struct):
    values: list[_Value] = []


class _Pair(msgspec.Struct):
    key: str = ""
    value: _Value | None = None


class _List(msgspec.Struct):
    values: list[_Pair] = []


class _Resource(msgspec.Struct):
    attributes: list[_Pair] = []


class _Scope(msgspec.Struct):
    name: str = ""


class _Span(msgspec.Struct, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    name: str = ""
    start_time_unix_nano: _Long = 0
    end_time_unix_nano: _Long = 0
    attributes: list[_Pair] = []


class _ScopeSpans(msgspec.Struct):
    scope: _Scope | None = None
    spans: list[_Span] = []


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] = []


class _TraceRequest(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] = []


class _Log(msgspec.Struct, rename="camel"):
    time_unix_nano: _Long = 0
    observed_time_unix_nano: _Long = 0
    event_name: str = ""
    trace_id: str = ""
    span_id: str = ""
    attributes: list[_Pair] = []
    body: _Value | None = None


class _ScopeLogs(msgspec.Struct, rename="camel"):
    scope: _Scope | None = None
    log_records: list[_Log] = []


class _ResourceLogs(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_logs: list[_ScopeLogs] = []


class _LogsRequest(msgspec.Struct, rename="camel"):
    resource_logs: list[_ResourceLogs] = []


_decode_spans = msgspec.json.Decoder(_TraceRequest).decode
_decode_logs = msgspec.json.Decoder(_LogsRequest).decode
_decode_span = msgspec.json.Decoder(_Span).decode
_decode_log = msgspec.json.Decoder(_Log).decode
_decode_resource = msgspec.json.Decoder(_Resource).decode
_decode_scope = msgspec.json.Decoder(_Scope).decode
_NOT_STRICT: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


class _FlawError(ValueError):
    """A value is not as OTLP/JSON has it."""


def spans(text: bytes, allowance: RequestBudget | None = None) -> Iterator[Batch]:
    """Read an ``ExportTraceServiceRequest``.

    Args:
        text: The JSON text, UTF-8.
        allowance: How much may be in it; by default as much as in any.

    Yields:
        Batches of one scope each, and small, so that the reader can pause in between.

    Raises:
        RequestError: It is not such a message, and the message says where; or too much is in it.
    """
    return _read(text, scan_json.SPANS, allowance)


def logs(text: bytes, allowance: RequestBudget | None = None) -> Iterator[Batch]:
    """Read an ``ExportLogsServiceRequest``; see `spans`."""
    return _read(text, scan_json.LOGS, allowance)


@dataclass(frozen=True, slots=True)
class _Shared:
    """The common part of a scope's items."""

    name: str
    origin: Resource
    is_log: bool


def _read(text: bytes, names: ListNames, allowance: RequestBudget | None) -> Iterator[Batch]:
    text = text.removeprefix(_BOM)
    splitter = Splitter(
        text,
        names,
        MOST_ITEMS if allowance is None else allowance.items,
        MOST_OBJECTS if allowance is None else allowance.objects,
    )
    try:
        for _ in splitter.steps():
            yield Batch()
    except StructureError:
        raise _no_such(text, names) from None
    kept = 0
    known = SharedResources()
    for number, group in enumerate(splitter.found.groups):
        origin = _origin(text, group.resource, known)
        for index, scoped in enumerate(group.scopes):
            scope = _Shared(_scope_name(text, scoped.scope), origin, names is scan_json.LOGS)
            batch = Batch()
            for at, item in enumerate(scoped.items):
                _add(batch, text, item, (number, index, at), scope)
                if batch.is_full:
                    kept += len(batch)
                    yield batch
                    batch = Batch()
            kept += len(batch)
            yield batch
    if not kept and (splitter.found.is_odd or not _is_empty_request(text, names)):
        raise _no_such(text, names)


def _is_empty_request(text: bytes, names: ListNames) -> bool:
    if len(text) > _DECODED_AS_A_WHOLE:
        return True
    try:
        _whole(names)(text)
    except _NOT_STRICT:
        return False
    return True


def _whole(names: ListNames) -> Any:
    return _decode_logs if names is scan_json.LOGS else _decode_spans


def _no_such(text: bytes, names: ListNames) -> Exception:
    what = "ExportLogsServiceRequest" if names is scan_json.LOGS else "ExportTraceServiceRequest"
    why = "malformed, or cut"
    if len(text) <= _DECODED_AS_A_WHOLE:
        try:
            _whole(names)(text)
        except msgspec.MsgspecError as error:
            why = _harmless(error)
        except (RecursionError, UnicodeDecodeError):
            why = "it is nested too deep, or is not UTF-8"
    return undecodable(f"the body is not a valid {what} in JSON: {why}")


def _harmless(error: msgspec.MsgspecError) -> str:
    """Remove quoted values from msgspec's message; types and places stay."""
    place = str(error).rpartition(" - at ")[2]
    return f"at {place}" if place.startswith("`") else "malformed"


def _origin(text: bytes, place: Range | None, known: SharedResources) -> Resource:
    if place is None:
        return Resource({})
    start, stop = place
    if stop - start > _LARGEST_RESOURCE:
        return Resource({}, 1)
    return known.share(text[start:stop], _resource)


def _resource(raw: bytes) -> Resource:
    try:
        pairs = _decode_resource(raw).attributes
        found = _attributes(pairs[:MOST_ATTRIBUTES])
    except (*_NOT_STRICT, _FlawError):
        try:
            read = Lenient(raw).attributes()
        except UndecodableError:
            return Resource({}, 1)
        kept = dict(list(read.items())[:MOST_ATTRIBUTES])
        return Resource(kept, len(read) - len(kept))
    return Resource(found, max(len(pairs) - MOST_ATTRIBUTES, 0))


def _scope_name(text: bytes, place: Range | None) -> str:
    if place is None or place[1] - place[0] > LARGE:
        return ""
    try:
        name: str = _decode_scope(text[slice(*place)]).name
    except _NOT_STRICT:
        return ""
    return name


def _add(batch: Batch, text: bytes, item: Range | None, place: ItemPath, scope: _Shared) -> None:
    if item is None:
        _add_undecodable(batch, b"", place, scope, "it is not an object")
        return
    _ITEMS.add(batch, text[slice(*item)], place, scope)


def _may_be_flagged(raw: bytes) -> bool:
    # an item whose flag has an escaped dot is decoded
    return _FLAG in raw or b"\\u" in raw


def _has_too_many_objects(raw: bytes) -> bool:
    """Bound what decoding makes, before it makes it: three bytes become a hundred and more."""
    if raw.count(b"{") + raw.count(b"[") <= _MOST_IN_ITEM:
        return False
    # brackets in texts, such as captured bodies, are not objects
    bare = _TEXTS.sub(b"", raw)
    return bare.count(b"{") + bare.count(b"[") > _MOST_IN_ITEM


def _decode(batch: Batch, raw: bytes, place: ItemPath, scope: _Shared) -> None:
    try:
        found = _log(raw, place, scope) if scope.is_log else _span(raw, place, scope)
    except (*_NOT_STRICT, _FlawError):
        try:
            found = _leniently(raw, place, scope)
        except UndecodableError as error:
            _add_undecodable(batch, raw, place, scope, f"it cannot be decoded: {error}")
            return
    if scope.is_log or found.attributes.get(FLAG) is True:
        batch.items.append(found)
    else:
        batch.ignored += 1


def _add_undecodable(batch: Batch, raw: bytes, place: ItemPath, scope: _Shared, why: str) -> None:
    attributes = {
        "undecodable.bytes": len(raw),
        "undecodable.sha256": hashlib.sha256(raw).hexdigest(),
    }
    left = ReceivedItem(
        "", "", "", "", 0, 0, attributes, scope.name, scope.origin, is_log=scope.is_log,
        place=place,
    )  # fmt: skip
    batch.undecodable.append((left, why))


def _span(raw: bytes, place: ItemPath, scope: _Shared) -> ReceivedItem:
    span = _decode_span(raw)
    return ReceivedItem(
        span.name,
        _id(span.trace_id),
        _id(span.span_id),
        _id(span.parent_span_id),
        _time(span.start_time_unix_nano),
        _time(span.end_time_unix_nano),
        _attributes(span.attributes),
        scope.name,
        scope.origin,
        place=place,
    )


def _log(raw: bytes, place: ItemPath, scope: _Shared) -> ReceivedItem:
    record = _decode_log(raw)
    time = _time(record.time_unix_nano) or _time(record.observed_time_unix_nano)
    return ReceivedItem(
        record.event_name,
        _id(record.trace_id),
        _id(record.span_id),
        "",
        time,
        time,
        _attributes(record.attributes),
        scope.name,
        scope.origin,
        is_log=True,
        body=_value(record.body, 0),
        place=place,
        raw=raw,
    )


def _leniently(raw: bytes, place: ItemPath, scope: _Shared) -> ReceivedItem:
    """Read what can be read of an item that is not as it should be."""
    read = Lenient(raw)
    if scope.is_log:
        start = end = read.time("timeUnixNano") or read.time("observedTimeUnixNano")
    else:
        start, end = read.time("startTimeUnixNano"), read.time("endTimeUnixNano")
    return ReceivedItem(
        read.text("eventName" if scope.is_log else "name"),
        read.id("traceId"),
        read.id("spanId"),
        "" if scope.is_log else read.id("parentSpanId"),
        start,
        end,
        read.attributes(),
        scope.name,
        scope.origin,
        is_log=scope.is_log,
        body=read.value("body") if scope.is_log else None,
        place=place,
        notes=tuple(read.notes),
    )


def _attributes(pairs: list[_Pair]) -> dict[str, Any]:
    return {pair.key: _value(pair.value, 0) for pair in pairs}


def _value(value: _Value | None, depth: int) -> Any:  # noqa: PLR0911 - one for each kind
    if value is None or depth > DEEPEST:
        return None
    if value.string_value is not None:
        return value.string_value
    if value.bool_value is not None:
        return value.bool_value
    if value.int_value is not None:
        return _integer(value.int_value, -_INT64, _INT64)
    if value.double_value is not None:
        return _double(value.double_value)
    if value.array_value is not None:
        return [_value(one, depth + 1) for one in value.array_value.values]
    if value.kvlist_value is not None:
        pairs = value.kvlist_value.values
        return {pair.key: _value(pair.value, depth + 1) for pair in pairs}
    return value.bytes_value


def _double(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        raise _FlawError from None


def _time(value: _Long) -> int:
    return _integer(value, 0, _UINT64)


def _integer(value: _Long, low: int, high: int) -> int:
    if isinstance(value, str):
        if len(value) > 20 or not value.removeprefix("-").isdecimal():  # noqa: PLR2004 - of 2**64
            raise _FlawError
        value = int(value)
    if not low <= value < high:
        raise _FlawError
    return value


def _id(text: str) -> str:
    if _HEX(text) is None:
        raise _FlawError
    return text.lower()


_ITEMS: Final = ItemDecoder(_may_be_flagged, _has_too_many_objects, _decode, _add_undecodable)
