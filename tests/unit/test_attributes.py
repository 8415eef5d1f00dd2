from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_growth import kept_by
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from strategies import a_record, records

from otel_audit import attributes
from otel_audit.attributes import record_from_attributes, record_from_span, to_attributes
from otel_audit.delivery.producer import make_audit_tracer, trace_record
from otel_audit.errors import InvalidAuditSpanError
from otel_audit.record import AuditRecord

OWN_IDS = ("1" * 32, "2" * 16)
MANDATORY = {
    "audit.flagged": True,
    "audit.actor.id": "u1",
    "audit.actor.type": "user",
    "audit.action": "CREATE",
    "audit.outcome": "success",
}


def read(carried: dict, **other: object) -> AuditRecord:
    given = {
        "name": "order.created",
        "start_time": 10,
        "end_time": 15,
        "trace": None,
        "own_ids": OWN_IDS,
        "resource": {},
        **other,
    }
    return record_from_attributes(carried, **given)


class TestRoundTrip:
    @given(records())
    def test_attributes_say_all_that_the_record_says(self, record):
        """A record spelled as attributes and read back is the same record."""
        trace_ids = (record.trace_id, record.span_id) if record.trace_id else None
        assert record == read(
            to_attributes(record),
            name=record.event_name,
            start_time=record.occurred_at,
            end_time=record.observed_at,
            trace=trace_ids,
            resource=record.resource,
        )

    @given(records())
    def test_a_real_audit_span_carries_the_record(self, record):
        """A record that went through a span of our own provider is the same record."""
        exporter = InMemorySpanExporter()
        tracer = make_audit_tracer(Resource(record.resource), SimpleSpanProcessor(exporter))
        server_span = None
        if record.trace_id is not None:
            flags = TraceFlags(TraceFlags.SAMPLED if record.trace_sampled else 0)
            server_span = NonRecordingSpan(
                SpanContext(int(record.trace_id, 16), int(record.span_id, 16), False, flags)
            )
        trace_record(tracer, record, server_span)
        (span,) = exporter.get_finished_spans()
        assert record_from_span(span) == record


class TestSpansOfOthers:
    def test_the_mandatory_attributes_are_enough(self):
        """A span with only the mandatory attributes becomes a record named after the span."""
        record = read(MANDATORY)
        assert record.event_name == "order.created"
        assert (record.actor.id, record.actor.type) == ("u1", "user")
        assert (record.occurred_at, record.duration) == (10, 5)

    def test_it_points_to_itself(self):
        """A span that is not ours is itself what the record's trace and span id lead to."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("theirs").start_span("order.created", attributes=MANDATORY).end()
        (span,) = exporter.get_finished_spans()
        record = record_from_span(span)
        assert record.span_id == trace.format_span_id(span.context.span_id)
        assert record.trace_id == trace.format_trace_id(span.context.trace_id)

    def test_its_record_id_is_derived_and_stable(self):
        """The same span read twice has the same record id, another span another one."""
        assert read(MANDATORY).record_id == read(MANDATORY).record_id
        assert read(MANDATORY).record_id != read(MANDATORY, own_ids=("3" * 32, "4" * 16)).record_id

    @pytest.mark.parametrize("name", attributes.MANDATORY)
    def test_a_missing_mandatory_attribute_is_named(self, name):
        """What is missing is named, so that its sender can mend it."""
        carried = {key: value for key, value in MANDATORY.items() if key != name}
        with pytest.raises(InvalidAuditSpanError, match=name):
            read(carried)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("audit.outcome", "perhaps"),
            ("audit.actor.type", "robot"),
            ("audit.changes", "no json"),
            ("audit.metadata", "[1]"),
            ("http.response.status_code", "two hundred"),
            ("audit.sequence.number", True),
        ],
    )
    def test_a_wrong_value_is_an_error_of_ours(self, name, value):
        """A value of the wrong type or choice is refused with an error that names the span."""
        with pytest.raises(InvalidAuditSpanError, match=r"order\.created"):
            read({**MANDATORY, name: value})

    def test_a_body_that_is_no_json_is_kept_as_a_text(self):
        """A body attribute of another's span need not be JSON."""
        record = read({**MANDATORY, "audit.request.body": "a=1&b=2"})
        assert record.request.body.text == '"a=1&b=2"'

    def test_an_end_before_the_start_is_no_negative_duration(self):
        """Clocks of others may go backwards."""
        assert read(MANDATORY, end_time=3).duration == 0


anything = (
    st.none() | st.booleans() | st.integers(-1, 600) | st.floats(allow_nan=False)
    | st.sampled_from(["", "ip", "user", "success", "CREATE", "none", "completed", "1", "x"])
    | st.sampled_from(['{"a":[1]}', "[1]", "no json", '[{"operation":"insert","entity":"o","table":"o"}]'])
    | st.lists(st.text(max_size=3) | st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)
)  # fmt: skip
known = st.sampled_from([
    *attributes._PLACES, attributes.CHANGES, attributes.METADATA, "http.request.header.accept",
    "http.request.header.host", "http.response.header.etag", "audit.entities", "other",
])  # fmt: skip


class TestAnyAttributes:
    @given(
        carried=st.dictionaries(known, anything, max_size=12),
        trace=st.none() | st.just(OWN_IDS), name=st.sampled_from(["order.created", ""]),
    )  # fmt: skip
    def test_make_a_record_that_says_the_same_again_or_an_error_of_ours(self, carried, trace, name):
        """Whatever a sender says: a record that reads the same when spelled again, or an error."""
        given = {"carried": {**MANDATORY, **carried}, "trace": trace, "name": name}
        try:
            record = read(**given)
        except InvalidAuditSpanError:
            return

        again = read(
            to_attributes(record),
            name=record.event_name,
            start_time=record.occurred_at,
            end_time=record.observed_at,
            trace=trace,
            resource=record.resource,
        )

        assert to_attributes(again) == to_attributes(record)

    @pytest.mark.parametrize(
        ("carried", "said"),
        [
            ({"audit.tenant.slug": "acme"}, "lacks audit.tenant.id"),
            ({"audit.target.id": "7"}, "lacks audit.target.type"),
            ({"http.response.status_code": "two hundred"}, "http.response.status_code"),
            ({"audit.actor.type": "robot"}, "audit.actor.type"),
        ],
    )
    def test_an_error_names_the_attribute(self, carried, said):
        """The attribute that is missing or wrong is named, so that its sender can mend it."""
        with pytest.raises(InvalidAuditSpanError, match=re.escape(said)):
            read({**MANDATORY, **carried})

    def test_an_error_without_a_type_gets_the_one_for_that(self):
        """A message without a type has the semantic conventions' word for a type."""
        record = read({**MANDATORY, "audit.error.message": "away"})

        assert (record.error.type, record.error.message) == ("_OTHER", "away")

    def test_many_shapes_take_bounded_memory(self):
        """Whatever names senders make up."""

        def senders(first: int) -> None:
            for number in range(first, first + 1_000):
                read({**MANDATORY, f"name {number}": "x"})
                read({**MANDATORY, f"{number}" + "x" * 9_000: "x"})

        senders(0)  # what is remembered at all is remembered now
        assert kept_by(lambda: senders(1_000)) < 100_000


class TestNoLimits:
    def test_limits_of_the_environment_do_not_cut_a_record(self, monkeypatch):
        """Attribute count and length limits of OpenTelemetry's variables leave audit spans alone."""
        monkeypatch.setenv("OTEL_ATTRIBUTE_COUNT_LIMIT", "2")
        monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2")
        monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
        monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
        exporter = InMemorySpanExporter()
        tracer = make_audit_tracer(Resource({}), SimpleSpanProcessor(exporter))
        record = a_record(metadata={f"key {number}": "x" * 5_000 for number in range(200)})
        trace_record(tracer, record, None)
        (span,) = exporter.get_finished_spans()
        assert record_from_span(span) == record
