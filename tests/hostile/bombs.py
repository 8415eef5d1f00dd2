"""Requests to the sink that cost their sender little, and would cost the sink much."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

import zstandard
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from sinks import request, span

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
LARGEST_BODY: Final = 24 << 20

# a text that the redaction's quick looks do not pass: it is looked at word by word
SUSPECT: Final = "token: %41%42= password=hunter2 "


Made = tuple[str, Callable[[], bytes]]


def bombs(names: Collection[str] | None = None) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield a name, a path, a content type, and the message, not compressed.

    Args:
        names: Which; all by default.
    """
    for found, path, kind in (
        (_spans(), "/v1/traces", PROTOBUF),
        (_framing(), "/v1/traces", PROTOBUF),
        (_logs(), "/v1/audit", PROTOBUF),
        (_texts(), "/v1/traces", JSON),
    ):
        for name, make in found:
            if names is None or name in names:
                yield name, path, kind, make()


def compressed(body: bytes, codings: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield a message in some codings; what is larger than a request may be is not sent as it is."""
    for coding in codings:
        if coding == "gzip":
            yield coding, gzip.compress(body, 6)
        elif coding == "zstd":
            yield coding, zstandard.ZstdCompressor(level=12).compress(body)
        elif len(body) <= LARGEST_BODY:
            yield coding, body


def _spans() -> Iterator[Made]:
    yield "roles", lambda: request(*(
        span(n, user__roles=[f"role:{SUSPECT}{k % 50}" for k in range(900)]) for n in range(1, 29)
    ))  # fmt: skip
    yield "user agents", lambda: request(*(
        span(n, user_agent__original=SUSPECT * 30_000) for n in range(1, 5)
    ))  # fmt: skip
    yield "headers", lambda: request(*(
        span(n, **{f"http__request__header__x-{k}": [SUSPECT] for k in range(900)})
        for n in range(1, 20)
    ))  # fmt: skip
    yield "one header", lambda: request(*(
        span(n, http__request__header__accept=[SUSPECT] * 20_000) for n in range(1, 5)
    ))  # fmt: skip
    yield "header names", lambda: request(*(
        span(n, **{f"http__request__header__{'p' * 60_000}{k}": ["a"] for k in range(10)})
        for n in range(1, 6)
    ))  # fmt: skip
    change = {"operation": "insert", "entity": "T", "table": "t",
              "values": {f"token_{k}": [None, SUSPECT + str(k)] for k in range(20)}}  # fmt: skip
    changes = json.dumps([change] * 800)
    yield "changes", lambda: request(*(span(n, audit__changes=changes) for n in range(1, 5)))
    small = json.dumps([{"operation": "insert", "entity": "T", "table": "t",
                         "values": {"a": ["a@b", 1]}}] * 10_000)  # fmt: skip
    yield "small changes", lambda: request(*(span(n, audit__changes=small) for n in range(1, 5)))
    nested = '{"password":' * 400 + "1" + "}" * 400
    yield "metadata", lambda: request(*(
        span(n, audit__metadata=json.dumps({str(k): nested for k in range(180)}))
        for n in range(1, 5)
    ))  # fmt: skip
    yield "bodies", lambda: request(*(
        span(n, audit__request__body=json.dumps([SUSPECT] * 20_000)) for n in range(1, 5)
    ))  # fmt: skip
    yield "paths", lambda: request(*(span(n, url__path="/%41%42" * 40_000) for n in range(1, 10)))
    yield "queries", lambda: request(*(span(n, url__query="a=%41&" * 40_000) for n in range(1, 10)))
    yield "errors", lambda: request(*(
        span(n, audit__error__message=SUSPECT * 25_000) for n in range(1, 5)
    ))  # fmt: skip
    yield "names", lambda: request(*(span(n, name=SUSPECT * 25_000) for n in range(1, 5)))
    yield "much of everything", lambda: request(*(
        span(n, user_agent__original=SUSPECT * 20, audit__metadata=json.dumps({"a": SUSPECT * 190}))
        for n in range(1, 4_000)
    ))  # fmt: skip
    yield "many spans", lambda: request(*(span(n % 7 + 1) for n in range(17_000)))
    yield "unfit spans", lambda: request(*(
        span(n % 7 + 1, audit__actor__id="", audit__metadata=SUSPECT) for n in range(14_000)
    ))  # fmt: skip
    yield "unflagged", lambda: request(*[Span()] * 100_000)
    yield (
        "one large unfit",
        lambda: request(span(1, audit__action="", audit__metadata=SUSPECT * 120_000)),
    )
    group = ResourceSpans(
        resource=Resource(attributes=[_pair(f"r{k}", SUSPECT) for k in range(20_000)]),
        scope_spans=[ScopeSpans(spans=[span(n) for n in range(1, 5_000)])],
    )
    yield "a resource for all", lambda: export_request(group)
    yield "resources", lambda: resources(9)
    yield "different resources", lambda: resources(9_000)
    yield "different services", lambda: resources(9_000, "service.name")
    yield "resources of lists", lambda: b"".join(
        export_request(ResourceSpans(
            resource=Resource(attributes=[_pair("n", str(n)), KeyValue(key="r", value=_empty(3_900))]),
            scope_spans=[ScopeSpans(spans=[span(n)])],
        ))
        for n in range(1, 256)
    )  # fmt: skip


def resources(different: int, name: str = "r") -> bytes:
    """Make nine thousand resources of one span each, so many of them different."""
    return b"".join(
        export_request(ResourceSpans(
            resource=Resource(attributes=[_pair(name, SUSPECT + str(n % different))]),
            scope_spans=[ScopeSpans(spans=[span(n)])],
        ))
        for n in range(1, 9_000)
    )  # fmt: skip


def export_request(*groups: ResourceSpans) -> bytes:
    """Write an ``ExportTraceServiceRequest``."""
    return ExportTraceServiceRequest(resource_spans=groups).SerializeToString()


def _framing() -> Iterator[Made]:
    yield "empty resources", lambda: b"\x0a\x00" * 2_000_000
    yield "unknown fields", lambda: b"\x10\x00" * 2_000_000
    deep = AnyValue(string_value="x")
    for _ in range(30):
        deep = AnyValue(array_value=ArrayValue(values=[deep]))
    yield (
        "deep values",
        lambda: request(*(_with(span(n), "user.roles", deep) for n in range(1, 8_000))),
    )
    yield "a list of nothing", lambda: request(_with(span(1), "user.roles", _empty(900_000)))
    yield "lists of nothing", lambda: request(*(
        _with(span(n), "user.roles", _empty(30_000)) for n in range(1, 60)
    ))  # fmt: skip
    yield "a map of nothing", lambda: request(_with(span(1), "user.roles", AnyValue(
        kvlist_value=KeyValueList(values=[KeyValue()] * 900_000)
    )))  # fmt: skip
    yield "attributes of nothing", lambda: request(_filled(span(1), KeyValue(), 900_000))
    yield "attributes of some spans", lambda: request(*(
        _filled(span(n), KeyValue(), 9_000) for n in range(1, 100)
    ))  # fmt: skip
    yield "a huge span", lambda: request(span(1, audit__metadata="x" * 30_000_000))


def _logs() -> Iterator[Made]:
    body = AnyValue(kvlist_value=KeyValueList(values=[_pair(SUSPECT, SUSPECT)] * 900))
    told = [_pair("audit.actor.id", "u"), _pair("audit.actor.type", "user"),
            _pair("audit.action", "READ"), _pair("audit.outcome", "success")]  # fmt: skip
    records = [
        LogRecord(event_name="x.y", time_unix_nano=1_790_000_000_000_000_000 + n, attributes=told,
                  body=body)
        for n in range(45)
    ]  # fmt: skip
    scoped = ScopeLogs(scope=InstrumentationScope(name="n" * 1_000_000), log_records=records)
    yield (
        "bodies of log records",
        lambda: ExportLogsServiceRequest(
            resource_logs=[ResourceLogs(scope_logs=[scoped])]
        ).SerializeToString(),
    )


def _texts() -> Iterator[Made]:
    flagged = {"key": "audit.flagged", "value": {"boolValue": True}}
    one: dict[str, Any] = {"name": "x", "attributes": [flagged]}
    yield "objects", lambda: _json([{**one, "attributes": [flagged, *[{}] * 900_000]}])
    yield "many objects", lambda: _json([{**one, "attributes": [flagged, *[{}] * 9_000]}] * 90)
    yield "brackets", lambda: b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"[" * 3_000_000
    deep = b'{"stringValue":"x"}'
    for _ in range(300):
        deep = b'{"arrayValue":{"values":[' + deep + b"]}}"
    spans = b'{"attributes":[{"key":"audit.flagged","value":' + deep + b"}]}"
    yield "deep", lambda: _json_of(b",".join([spans] * 400))
    yield "quotes", lambda: b'{"resourceSpans":[{"x":' + b'""' * 2_000_000
    yield "backslashes", lambda: b'{"resourceSpans":[{"x":"' + b"\\\\" * 2_000_000
    yield "escaped quotes", lambda: b'{"resourceSpans":[{"x":"' + b'\\"' * 2_000_000
    yield "a long text", lambda: b'{"resourceSpans":[{"x":"' + b"x" * 4_000_000 + b'"}]}'
    yield "blanks", lambda: b'{"resourceSpans":[' + b" " * 4_000_000 + b"]}"
    yield "halves", lambda: _json([
        {**one, "name": "\ud83d" * 6_000, "startTimeUnixNano": "9" * 5_000}
    ] * 100)  # fmt: skip
    yield "digits", lambda: _json_of(b",".join(
        b'{"attributes":[{"key":"audit.flagged","value":{"boolValue":true}},'
        b'{"key":"a","value":{"intValue":' + b"9" * 39_000 + b"}}]}" for _ in range(100)
    ))  # fmt: skip
    yield "no objects", lambda: _json_of(b",".join([b"1"] * 1_500_000))


def _json(spans: list[dict[str, Any]]) -> bytes:
    return _json_of(json.dumps(spans).encode()[1:-1])


def _json_of(spans: bytes) -> bytes:
    return b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + spans + b"]}]}]}"


def _empty(count: int) -> AnyValue:
    return AnyValue(array_value=ArrayValue(values=[AnyValue()] * count))


def _pair(key: str, text: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=text))


def _with(found: Span, key: str, value: AnyValue) -> Span:
    found.attributes.append(KeyValue(key=key, value=value))
    return found


def _filled(found: Span, pair: KeyValue, count: int) -> Span:
    found.attributes.extend([pair] * count)
    return found
