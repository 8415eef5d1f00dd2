"""Attributes read from their bytes are what the whole message, decoded, says they are."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
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

from otel_audit.server import decode_attributes
from otel_audit.server.decode_protobuf import logs, spans

FLAG = KeyValue(key="audit.flagged", value=AnyValue(bool_value=True))

keys = st.sampled_from(["a", "b", "audit.flagged", "audit.request.id", ""]) | st.text(max_size=140)
plain = (
    st.builds(AnyValue, string_value=st.text(max_size=200))
    | st.builds(AnyValue, bool_value=st.booleans())
    | st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1))
    | st.builds(AnyValue, double_value=st.floats(allow_nan=False))
    | st.builds(AnyValue, bytes_value=st.binary(max_size=9))
    | st.builds(AnyValue)
)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3).map(
            lambda found: AnyValue(array_value=ArrayValue(values=found))
        )
        | st.lists(st.builds(KeyValue, key=keys, value=inner), max_size=3).map(
            lambda found: AnyValue(kvlist_value=KeyValueList(values=found))
        )
    ),
    max_leaves=5,
)
attributes = st.lists(st.builds(KeyValue, key=keys, value=values), max_size=8)


def told(value: AnyValue) -> Any:
    """What a value says, by the protobuf messages themselves."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [told(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return {one.key: told(one.value) for one in value.kvlist_value.values}
    found = getattr(value, kind)
    return base64.b64encode(found).decode() if kind == "bytes_value" else found


def all_told(found: Any) -> list[tuple[str, Any]]:
    """Names and values in their order, for a header's place is part of what is hashed."""
    return list({pair.key: told(pair.value) for pair in found}.items())


@given(
    own=attributes, resource=attributes, scope=st.text(max_size=5), name=st.text(max_size=5),
    times=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
    ids=st.tuples(*[st.binary(max_size=16)] * 3), flagged=st.booleans(),
)  # fmt: skip
def test_a_span(  # noqa: PLR0917
    own, resource, scope, name, times, ids, flagged
):
    span = Span(
        name=name, trace_id=ids[0], span_id=ids[1], parent_span_id=ids[2], attributes=own,
        start_time_unix_nano=times[0], end_time_unix_nano=times[1],
    )  # fmt: skip
    if flagged:
        span.attributes.append(FLAG)
    group = ResourceSpans(
        resource=Resource(attributes=resource),
        scope_spans=[ScopeSpans(scope=InstrumentationScope(name=scope), spans=[span])],
    )
    is_audit = any(
        pair.key == "audit.flagged" and pair.value.bool_value for pair in span.attributes
    )

    (batch,) = spans(ExportTraceServiceRequest(resource_spans=[group]).SerializeToString())

    assert (len(batch.items), batch.ignored) == ((1, 0) if is_audit else (0, 1))
    for item in batch.items:
        assert list(item.attributes.items()) == all_told(span.attributes)
        assert list(item.origin.attributes.items()) == all_told(resource)
        assert (item.name, item.scope) == (name, scope)
        assert (item.trace_id, item.span_id, item.parent_span_id) == tuple(map(bytes.hex, ids))
        assert (item.start_time, item.end_time) == times


@given(own=attributes, body=st.none() | values, resource=attributes)
def test_a_log_record(own, body, resource):
    record = LogRecord(
        event_name="order.created", observed_time_unix_nano=7, attributes=own, trace_id=b"t" * 16,
        span_id=b"s" * 8, body=body,
    )  # fmt: skip
    group = ResourceLogs(
        resource=Resource(attributes=resource), scope_logs=[ScopeLogs(log_records=[record])]
    )

    (batch,) = logs(ExportLogsServiceRequest(resource_logs=[group]).SerializeToString())

    (item,) = batch.items
    assert list(item.attributes.items()) == all_told(own)
    assert list(item.origin.attributes.items()) == all_told(resource)
    assert item.body == (told(body) if body is not None else None)
    assert (item.name, item.start_time, item.end_time) == ("order.created", 7, 7)
    assert (item.trace_id, item.span_id) == ((b"t" * 16).hex(), (b"s" * 8).hex())


def test_messages_that_come_in_pieces_are_put_together():
    """Protobuf lets a sender write one message as several, and readers merge them."""
    one = Span(attributes=[FLAG], name="first").SerializeToString()
    other = Span(name="second").SerializeToString()
    scoped = b"".join(b"\x12" + bytes([len(span)]) + span for span in (one + other,))
    group = ResourceSpans(resource=Resource(attributes=[FLAG])).SerializeToString() * 2
    group += b"\x12" + bytes([len(scoped)]) + scoped
    message = b"\x0a" + bytes([len(group)]) + group

    (batch,) = spans(message)

    decoded = ExportTraceServiceRequest.FromString(message).resource_spans[0]
    (item,) = batch.items
    assert item.name == decoded.scope_spans[0].spans[0].name == "second"
    assert list(item.origin.attributes.items()) == all_told(decoded.resource.attributes)


@pytest.mark.parametrize(
    "value", [AnyValue(string_value="true"), AnyValue(int_value=1), AnyValue()]
)
def test_only_a_boolean_flags(value):
    assert not decode_attributes.is_flagged(
        [KeyValue(key="audit.flagged", value=value).SerializeToString()]
    )


def test_a_flag_that_is_spelled_in_another_way_flags():
    """The value first, the name after it: any order of fields is valid."""
    name, value = FLAG.SerializeToString()[:15], FLAG.SerializeToString()[15:]

    assert decode_attributes.is_flagged([value + name])
