"""OTLP requests in JSON, read into `Incoming`.

OTLP's JSON differs from protobuf's own mapping (https://opentelemetry.io/docs/specs/otlp/
#json-protobuf-encoding): ids are in hex, integers of 64 bits may be strings, enums are numbers, and
unknown fields are ignored.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sized
from typing import Any, Final, TypeAlias

import msgspec

from otel_audit.attributes import FLAG
from otel_audit.serve.incoming import MOST_ITEMS, Batch, Incoming, Origin, batched
from otel_audit.serve.pairs import DEEPEST
from otel_audit.serve.problems import too_many, undecodable

_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{32}|[0-9a-fA-F]{16})?").fullmatch
# the closing quote may be missing: then it matches to the end, and is not tried again behind each
_TEXTS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)

MOST_OBJECTS: Final = 1_000_000
"""JSON objects in one request; a record of the fullest kind has about a hundred."""

_UINT64: Final = 1 << 64
_INT64: Final = 1 << 63

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


def spans(text: bytes) -> Iterator[Batch]:
    """Read an ``ExportTraceServiceRequest``.

    Args:
        text: The JSON text, UTF-8.

    Yields:
        Batches of one scope each, and small, so that whoever reads can pause in between.

    Raises:
        Problem: It is no such message, and the message says where; or too much is in it.
    """
    seen = 0
    for group in _decoded(_decode_spans, text, "ExportTraceServiceRequest").resource_spans:
        origin = _origin(group.resource)
        for scoped in group.scope_spans:
            seen = _counted(seen, scoped.spans, "spans")
            add = functools.partial(_add_span, scope=scoped.scope, origin=origin)
            yield from batched(scoped.spans, add)


def logs(text: bytes) -> Iterator[Batch]:
    """Read an ``ExportLogsServiceRequest``; see `spans`."""
    seen = 0
    for group in _decoded(_decode_logs, text, "ExportLogsServiceRequest").resource_logs:
        origin = _origin(group.resource)
        for scoped in group.scope_logs:
            seen = _counted(seen, scoped.log_records, "log records")
            add = functools.partial(_add_log, scope=scoped.scope, origin=origin)
            yield from batched(scoped.log_records, add)


def _counted(seen: int, found: Sized, what: str) -> int:
    seen += len(found)
    if seen > MOST_ITEMS:
        raise too_many(MOST_ITEMS, what)
    return seen


def _refuse_too_many_objects(text: bytes) -> None:
    """Bound what decoding makes, before it makes it: three bytes become a hundred and more."""
    if text.count(b"{") <= MOST_OBJECTS:
        return
    # braces in texts, such as captured bodies, are no objects
    if _TEXTS.sub(b"", text).count(b"{") > MOST_OBJECTS:
        raise too_many(MOST_OBJECTS, "JSON objects")


def _decoded(decode: Any, text: bytes, what: str) -> Any:
    _refuse_too_many_objects(text)
    try:
        return decode(text)
    except msgspec.MsgspecError as error:
        raise undecodable(f"the body is no {what} in JSON: {_harmless(error)}") from None
    except (RecursionError, UnicodeDecodeError):
        raise undecodable(f"the body is no {what} in JSON that can be read") from None


def _harmless(error: msgspec.MsgspecError) -> str:
    """What msgspec says names types and places; of a value it may quote a piece."""
    place = str(error).rpartition(" - at ")[2]
    return f"at {place}" if place.startswith("`") else "malformed"


def _origin(resource: _Resource | None) -> Origin:
    return Origin({} if resource is None else _attributes(resource.attributes))


def _add_span(batch: Batch, span: _Span, scope: _Scope | None, origin: Origin) -> None:
    attributes = _attributes(span.attributes)
    if attributes.get(FLAG) is True:
        batch.items.append(_span(span, attributes, scope, origin))
    else:
        batch.ignored += 1


def _add_log(batch: Batch, record: _Log, scope: _Scope | None, origin: Origin) -> None:
    batch.items.append(_log(record, scope, origin))


def _span(
    span: _Span, attributes: dict[str, Any], scope: _Scope | None, origin: Origin
) -> Incoming:
    return Incoming(
        span.name,
        _id(span.trace_id),
        _id(span.span_id),
        _id(span.parent_span_id),
        _time(span.start_time_unix_nano),
        _time(span.end_time_unix_nano),
        attributes,
        "" if scope is None else scope.name,
        origin,
    )


def _log(record: _Log, scope: _Scope | None, origin: Origin) -> Incoming:
    time = _time(record.time_unix_nano) or _time(record.observed_time_unix_nano)
    return Incoming(
        record.event_name,
        _id(record.trace_id),
        _id(record.span_id),
        "",
        time,
        time,
        _attributes(record.attributes),
        "" if scope is None else scope.name,
        origin,
        is_log=True,
        body=_value(record.body, 0),
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
        return _integer(value.int_value, -_INT64, _INT64, "an intValue")
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
        raise undecodable("a doubleValue is no number") from None


def _time(value: _Long) -> int:
    return _integer(value, 0, _UINT64, "a time")


def _integer(value: _Long, low: int, high: int, what: str) -> int:
    if isinstance(value, str):
        if len(value) > 20 or not value.removeprefix("-").isdecimal():  # noqa: PLR2004 - of 2**64
            raise undecodable(f"{what} is no integer of 64 bits")
        value = int(value)
    if not low <= value < high:
        raise undecodable(f"{what} is no integer of 64 bits")
    return value


def _id(text: str) -> str:
    if _HEX(text) is None:
        raise undecodable("an id is not in hex: OTLP/JSON has 32 digits for a trace, 16 for a span")
    return text.lower()
