from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otel_audit_otlp import protobuf_wire
from otel_audit_otlp.encoding import LARGEST_REQUEST, carry, parts_of, to_request, to_span
from otlp_receiver import plain, read_request
from strategies import a_record, records

from otel_audit.attributes import SCOPE_NAME
from otel_audit.record import AuditRecord, Body, Request, to_json

TRACED = {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}


class TestRoundTrip:
    @given(st.lists(records(), max_size=4))
    def test_records_survive_unchanged(self, sent):
        """Records that were written as protobuf and read back are the same, to the byte of text."""
        carried, refused = carry(sent)
        assert refused == []
        received = read_request(to_request(carried))
        assert received == sent
        assert [to_json(record) for record in received] == [to_json(record) for record in sent]

    def test_the_text_of_a_body_is_kept_to_the_letter(self):
        """Odd spacing, key order and numbers of a body's JSON text travel as they are."""
        text = b'{"b" : 1.10,  "a":[1e3, 0.30 ], "\\u00e9":"\\/"}'
        record = a_record(request=Request(id="r", body=Body(content=msgspec.Raw(text))))
        (received,) = read_request(to_request(carry([record])[0]))
        assert bytes(received.request.body.content) == text

    @settings(max_examples=20)
    @given(st.dictionaries(st.text(max_size=5), st.lists(st.integers(-9, 9) | st.text(max_size=3))))
    def test_a_resource_of_lists_survives(self, resource):
        """Resource attributes may be lists."""
        record = a_record(resource=resource)
        (received,) = read_request(to_request(carry([record])[0]))
        assert received.resource == resource

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text()
            | st.floats(allow_nan=False),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        )
    )  # fmt: skip
    def test_values_of_any_shape_survive(self, value):
        """Whatever OTLP can say is read by its own classes as it was."""
        message = Resource.FromString(
            protobuf_wire.pairs(protobuf_wire.RESOURCE_ATTRIBUTE, {"name": value})
        )
        assert [(kept.key, plain(kept.value)) for kept in message.attributes] == [("name", value)]

    def test_it_is_what_the_official_classes_write(self):
        """Byte for byte the canonical form: read and written again it is the same."""
        request = to_request(carry([a_record(), a_record(**TRACED, sequence_number=300)])[0])
        assert ExportTraceServiceRequest.FromString(request).SerializeToString() == request

    @pytest.mark.parametrize("value", [2**63, -(2**63) - 1, "\ud800", object()])
    def test_what_it_cannot_say_is_an_error(self, value):
        """Never something else in its place."""
        with pytest.raises((ValueError, TypeError)):
            protobuf_wire.pairs(protobuf_wire.SPAN_ATTRIBUTE, {"name": value})


def span_of(record: AuditRecord) -> Span:
    return Span.FromString(to_span(record))


class TestSpan:
    def test_it_is_a_child_of_the_applications_span(self):
        """The record's ids are those of the span it is about, which is the carrying span's parent."""
        span = span_of(a_record(**TRACED))
        assert span.trace_id.hex() == TRACED["trace_id"]
        assert span.parent_span_id.hex() == TRACED["span_id"]
        assert span.span_id.hex() != TRACED["span_id"]

    def test_its_ids_are_the_same_on_every_delivery(self):
        """The same record gives the same span, another record another one; also without a trace."""
        one, other = a_record(), a_record()
        assert span_of(one) == span_of(one)
        assert span_of(one).trace_id != span_of(other).trace_id
        assert span_of(one).span_id != span_of(other).span_id
        assert len(span_of(one).trace_id) == 16
        assert span_of(one).parent_span_id == b""

    def test_it_says_who_made_it(self):
        """The instrumentation scope is ours, and each resource stands once for its neighbours."""
        sent = [a_record(resource={"service.name": name}) for name in ("shop", "shop", "till")]
        request = ExportTraceServiceRequest.FromString(to_request(carry(sent)[0]))
        names = [
            group.resource.attributes[0].value.string_value for group in request.resource_spans
        ]
        assert names == ["shop", "till"]
        assert {
            scoped.scope.name for group in request.resource_spans for scoped in group.scope_spans
        } == {SCOPE_NAME}


class TestWhatDoesNotFit:
    def test_a_text_that_is_no_unicode_is_mended(self):
        """A lone surrogate in a header does not cost the record."""
        (carried,), refused = carry([a_record(metadata={"agent": "a\ud800b"})])
        assert refused == []
        assert carried.record.metadata == {"agent": "a\ufffdb"}

    def test_what_no_span_can_carry_is_told_with_the_reason(self):
        """A time before 1970 has no place in OTLP; the others of the batch go on."""
        bad, good = a_record(occurred_at=-5), a_record()
        carried, (refused,) = carry([bad, good])
        assert [item.record for item in carried] == [good]
        assert refused.record_id == bad.record_id
        assert "ValueError" in refused.reason
        assert bad.record_id.encode() in refused.received


class TestParts:
    def test_a_large_batch_is_sent_in_several_requests(self):
        """No request is larger than receivers take, and the order is kept."""
        sent = [a_record(metadata={"text": "x" * 1_000_000}) for _ in range(8)]
        parts = list(parts_of(carry(sent)[0]))
        assert [item.record for part in parts for item in part] == sent
        assert len(parts) == 3
        assert all(len(to_request(part)) < LARGEST_REQUEST + 10_000 for part in parts)

    def test_one_that_the_sink_would_put_aside_is_made_smaller(self):
        """It leaves out what is largest, and says so, rather than be no record at all."""
        sent = [a_record(), a_record(metadata={"text": "x" * 4_000_000}), a_record()]
        (part,) = parts_of(carry(sent)[0])
        assert [item.record.record_id for item in part] == [one.record_id for one in sent]
        assert part[1].record.metadata == {"audit.truncated": ["metadata"]}
